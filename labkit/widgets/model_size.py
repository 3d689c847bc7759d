"""Model scale widget, M = 16 Ψ + A: what a transformer needs to be trained, beside what a device has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labkit.checks import one_of, whole
from labkit.costs.memory import Memory
from labkit.costs.training import Bill, training_flops
from labkit.costs.transformer import PRESETS, RECOMPUTE, Transformer
from labkit.plots.panel import Picture
from labkit.plots.stacks import stacked
from labkit.text import listed, some
from labkit.widgets.view import Computed, View, choice, frames, lines, size, slider_over, whole_slider

OWN = "your own"
DEVICES = {"16 GB": 16e9, "24 GB": 24e9, "80 GB": 80e9}
PEAK, SHARE = 312e12, 0.4  # operations a second of an A100 in half precision, and what of it a training reaches
PRICE, WATTS = 2.0, 400.0  # of a device-hour and of a device
WIDTHS = (128, 256, 512, 768, 1024, 1600, 2048, 2560, 4096, 5120, 8192, 12288, 16384)
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
TOKENS = {"1 billion": 1e9, "10 billion": 1e10, "100 billion": 1e11, "300 billion": 3e11, "1.4 trillion": 1.4e12,
          "15 trillion": 1.5e13}  # fmt: skip
COUNTS = (1, 8, 64, 256, 1024, 4096, 16384)


@dataclass(frozen=True)
class ModelScale(Computed):
    """A transformer, what one device needs for it by what it is to do, and the bill of its training on `tokens`."""

    name: str
    model: Transformer
    batch: int
    needs: Mapping[str, Memory]
    bill: Bill
    tokens: float

    @property
    def training(self) -> Memory:
        """What training takes, as it was set."""
        return list(self.needs.values())[-1]

    @property
    def fits(self) -> tuple[str, ...]:
        """The devices on which it can be trained."""
        return tuple(name for name, room in DEVICES.items() if self.training.total <= room)

    @property
    def ok(self) -> bool:
        return bool(self.fits)

    @property
    def latex(self) -> str:
        """Parameters, memory and operations, with their numbers."""
        it, psi = self.model, self.model.parameters
        layer = "12 h^2 + 13 h" if not it.gated else r"\text{matrices} + \text{norms}"
        states, kept = self.training.total - self.training.activations, self.training.activations
        return lines(
            rf"\Psi &= L\,({layer}) + \text{{embeddings}} = {_number(psi)}, \qquad L = {it.layers},\ h = {it.hidden}",
            rf"M &= 16\,\Psi + A = {size(states)} + {size(kept)} = {size(self.training.total)}",
            rf"C &= 6\,\Psi D = 6 \cdot {_number(psi)} \cdot {_number(self.tokens)} = {_number(self.bill.flops)}"
            r"\ \text{operations}",
        )

    @property
    def sentence(self) -> str:
        bill = self.bill
        least = -(-self.training.total // DEVICES["80 GB"])
        where = (
            f"can be trained on a device of {listed(list(self.fits), len(self.fits))}"
            if self.fits
            else f"cannot be trained on one device: it takes the memory of {some(int(least), 'device')} of 80 GB"
        )
        days = f"{bill.days:,.3g} days" if bill.days >= 1 else f"{24 * bill.days:.3g} hours"
        return (
            f"Predicted: {self.name} {where}, with a batch of {self.batch}. On {self.bill.devices:,} A100s at 40 % of "
            f"their peak the training takes {days}, {bill.kwh / 1000:,.3g} MWh, and at {PRICE:g} dollars for a "
            f"device-hour {bill.cost:,.0f} dollars."
        )


def compute(
    preset: str = "GPT-2",
    layers: int = 12,
    hidden: int = 768,
    seq: int = 1024,
    batch: int = 8,
    recompute: str = "none",
    tokens: float = 3e11,
    devices: int = 64,
) -> ModelScale:
    """Memory and training bill of a published model, or of "your own" with so many layers of width `hidden`.

    `batch` is how many sequences of `seq` tokens a device takes at once, `recompute` what of their activations it
    computes again instead of keeping it; the training sees `tokens` on so many `devices`. Raises SettingError.

    >>> made = compute("GPT-3", batch=1)
    >>> round(made.model.parameters / 1e9, 1), made.fits
    (174.6, ())
    """
    one_of(preset, "preset", (*PRESETS, OWN)), one_of(recompute, "recompute", RECOMPUTE), whole(batch, "batch")
    model = own(layers, hidden, seq) if preset == OWN else PRESETS[preset]
    needs = {
        "read once": Memory(parameters=2.0 * model.parameters),
        "train, batch 1": model.memory(microbatch=1),
        f"train, batch {batch}": model.memory(microbatch=batch),
    }
    if recompute != "none":
        needs |= {f"{recompute} recomputation": model.memory(microbatch=batch, recompute=recompute)}
    bill = Bill(training_flops(model.parameters, tokens), devices, SHARE * PEAK, watts=WATTS, price=PRICE)
    return ModelScale(preset if preset != OWN else "your model", model, batch, needs, bill, tokens)


def own(layers: int, hidden: int, seq: int) -> Transformer:
    """A transformer like GPT-2 with heads 64 wide and GPT-2's vocabulary."""
    return Transformer(layers, hidden, max(1, hidden // 64), vocab=50257, seq=seq)


def model_scale(preset: str = "GPT-2") -> View:
    """Sliders over a transformer and its training: which devices have the memory, and what it takes in days and money.

    >>> view = model_scale()
    >>> view.controls["preset"].value = "GPT-3"
    >>> "174.6" in view.formula.value
    True
    """
    controls = {
        "preset": choice((*PRESETS, OWN), preset, "model", "A published model, or one by the sliders beside"),
        "layers": whole_slider(12, 1, 128, "layers", "How many layers your own model has"),
        "hidden": slider_over(WIDTHS, 768, "width", "How many numbers stand for a token, h"),
        "seq": slider_over(LENGTHS, 1024, "context", "Tokens in a sequence"),
        "batch": slider_over([2**k for k in range(8)], 8, "batch", "Sequences that a device takes at once"),
        "recompute": choice(RECOMPUTE, "none", "recompute", "Which activations are computed again, not kept"),
        "tokens": slider_over(TOKENS.items(), 3e11, "tokens", "How much text the training sees"),
        "devices": slider_over(COUNTS, 64, "devices", "How many train together"),
    }

    def adjust() -> None:
        mine = controls["preset"].value == OWN
        for name in ("layers", "hidden", "seq"):
            controls[name].disabled = not mine
            if not mine:
                controls[name].value = getattr(PRESETS[controls["preset"].value], name)

    return View("model_scale", controls, frames(compute, _memory), adjust=adjust)


def _memory(made: ModelScale) -> Picture:
    rows = {name: memory.parts for name, memory in made.needs.items()}
    title = f"What one device needs for {made.name}"
    return stacked(rows, limits=DEVICES, title=title, note="predicted")


def _number(value: float) -> str:
    """A large number with a power of ten."""
    for power, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if power <= value < 1000 * power:
            return rf"{value / power:.4g}\,\text{{{word}}}"
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return rf"{float(mantissa):g} \cdot 10^{{{int(exponent)}}}" if value >= 1e12 else f"{value:.4g}"
