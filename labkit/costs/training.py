"""What a training takes: operations, days, energy and money, with the assumptions shown."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.checks import number, whole


def training_flops(parameters: float, tokens: float) -> float:
    """Operations of training so many parameters on so many tokens, by the rule of thumb C = 6 N D (arXiv:2001.08361).

    >>> f"{training_flops(174.6e9, 300e9):.4g}"  # GPT-3; arXiv:2005.14165, table D.1, says 3.14e23
    '3.143e+23'
    """
    return 6 * number(parameters, "parameters") * number(tokens, "tokens")


@dataclass(frozen=True, repr=False)
class Bill:
    """A training on `devices` that each do `achieved` operations a second: seconds, energy, emissions and price.

    `watts` are those of one device with its share of its machine, `pue` the data centre's overhead, `carbon` kg of CO₂
    for a kWh, `price` for a device-hour. The defaults of the last three are of D. Patterson et al., arXiv:2104.10350,
    for GPT-3. All of them are assumptions, and the repr shows them.

    >>> Bill(flops=3.14e23, devices=10_000, achieved=24.6e12, watts=330, price=2.0)
    14.8 days on 10,000 devices at 24.6 TFLOP/s: 1,287 MWh, 552 t CO2, 7,091,238 in money
    (330 W a device, PUE 1.1, 0.429 kg CO2 a kWh, 2 an hour)
    """

    flops: float
    devices: int
    achieved: float
    watts: float = 400.0
    pue: float = 1.10
    carbon: float = 0.429
    price: float = 0.0

    def __post_init__(self) -> None:
        number(self.flops, "flops")
        whole(self.devices, "devices")
        number(self.achieved, "achieved", above=True, unit="operations a second")
        number(self.pue, "pue", least=1)
        for name in ("watts", "carbon", "price"):
            number(getattr(self, name), name)

    @property
    def seconds(self) -> float:
        """How long it takes, if no device stands still."""
        return self.flops / (self.devices * self.achieved)

    @property
    def days(self) -> float:
        """The same in days."""
        return self.seconds / 86400

    @property
    def kwh(self) -> float:
        """Energy in kWh, the data centre's overhead included."""
        return self.devices * self.watts / 1000 * self.pue * self.seconds / 3600

    @property
    def tonnes(self) -> float:
        """Tonnes of CO₂ that making this energy emits."""
        return self.kwh * self.carbon / 1000

    @property
    def cost(self) -> float:
        """The price of all device-hours."""
        return self.devices * self.seconds / 3600 * self.price

    def __repr__(self) -> str:
        priced = f", {self.cost:,.0f} in money" if self.price else ""
        return (
            f"{self.days:,.3g} days on {self.devices:,} devices at {self.achieved / 1e12:.3g} TFLOP/s: "
            f"{self.kwh / 1000:,.0f} MWh, {self.tonnes:,.0f} t CO2{priced}\n"
            f"({self.watts:g} W a device, PUE {self.pue:g}, {self.carbon:g} kg CO2 a kWh"
            f"{f', {self.price:g} an hour' if self.price else ''})"
        )
