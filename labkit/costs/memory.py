"""Memory: what a peer needs to train so many parameters, and what ZeRO takes away from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from labkit.checks import number, whole
from labkit.errors import SettingError
from labkit.text import amount

PRECISIONS = {  # bytes a parameter: of itself, its gradient, and what Adam keeps of it
    "mixed": (2, 2, 12),  # half-precision training with a float32 copy and two moments (arXiv:1910.02054, §3.1)
    "megatron": (2, 4, 12),  # the same with gradients summed in float32: 18 bytes (arXiv:2205.05198)
    "float32": (4, 4, 8),
}


@dataclass(frozen=True, repr=False)
class Memory:
    """Bytes that a peer holds, by what for.

    >>> Memory(parameters=4e6, gradients=4e6, optimizer=8e6).total
    16000000.0
    """

    parameters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    buffers: float = 0.0

    @property
    def states(self) -> float:
        """Parameters, gradients and what the optimiser keeps, bytes."""
        return self.parameters + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """All of it together, bytes."""
        return self.states + self.activations + self.buffers

    @property
    def parts(self) -> dict[str, float]:
        """Bytes by what for, as a picture names them, without what takes none.

        >>> Memory(parameters=4e6, optimizer=8e6).parts
        {'parameters': 4000000.0, 'optimiser': 8000000.0}
        """
        named = {"parameters": self.parameters, "gradients": self.gradients, "optimiser": self.optimizer,
                 "activations": self.activations}  # fmt: skip
        return {what: size for what, size in named.items() if size}

    def plus(self, activations: float) -> Memory:
        """The same with so many bytes of activations more."""
        return replace(self, activations=self.activations + activations)

    def __repr__(self) -> str:
        parts = ("parameters", "gradients", "optimizer", "activations", *["buffers"] * (self.buffers > 0))
        named = [f"{part.replace('optimizer', 'optimiser')} {amount(getattr(self, part))}" for part in parts]
        return f"Memory: {amount(self.total)} = {' + '.join(named)}"


def states(
    parameters: float, zero: int = 0, data: int = 1, precision: str | tuple[float, float, float] = "mixed"
) -> Memory:
    """Bytes of the states of so many parameters on each of `data` peers, with ZeRO's stage `zero`.

    Stage 1 splits the optimiser's states, 2 the gradients too, 3 the parameters too: S. Rajbhandari et al.,
    arXiv:1910.02054, fig. 1. `precision` is "mixed" (2 + 2 + 12 bytes a parameter with Adam), "megatron" (2 + 4 + 12)
    or "float32" (4 + 4 + 8), or three such numbers. Raises SettingError for a stage or precision that is none.

    >>> [round(states(7.5e9, zero=stage, data=64).total / 1e9, 1) for stage in (0, 1, 2, 3)]
    [120.0, 31.4, 16.6, 1.9]
    """
    number(parameters, "parameters")
    whole(zero, "zero", least=0, most=3), whole(data, "data")
    if isinstance(precision, str) and precision not in PRECISIONS:
        raise SettingError(
            f"precision={precision!r} is unknown; choose {', '.join(PRECISIONS)}, or give three numbers of bytes."
        )
    own = PRECISIONS[precision] if isinstance(precision, str) else precision
    if len(own) != 3:
        raise SettingError(f"precision={precision!r} are not three numbers: give bytes of parameter, gradient, state.")
    of_parameter, of_gradient, of_state = (number(it, "bytes a parameter") for it in own)
    return Memory(
        parameters * of_parameter / (data if zero >= 3 else 1),
        parameters * of_gradient / (data if zero >= 2 else 1),
        parameters * of_state / (data if zero >= 1 else 1),
    )
