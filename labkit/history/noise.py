"""The gradient noise scale: how large a batch is still useful, told by gradients of single peers and their mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isnan
from statistics import fmean
from typing import TypeVar

from torch import Tensor

from labkit.checks import number, whole
from labkit.errors import SettingError

NOISE, SIGNAL = "gradient noise", "gradient signal"  # by these names peers log their estimates
T = TypeVar("T", float, Tensor)
_DECAY = 0.98  # of the moving averages, so that about the last 50 rounds count


@dataclass(frozen=True)
class NoiseScale:
    """B = tr Σ / |G|² examples, where Σ is the covariance of single examples' gradients and G their mean.

    A step on a batch much smaller than B is mostly noise, so that twice the batch is nearly worth two steps; one on a
    batch much larger than B is hardly better than one on B. S. McCandlish et al., arXiv:1812.06162, eq. 2.9; for an
    optimiser like SGD and a well-conditioned loss, as there. It grows as training goes on.

    `noise` is tr Σ, `signal` |G|², both unbiased estimates (appendix A.1), which may come out below zero.

    >>> scale = NoiseScale(noise=80.0, signal=0.5)
    >>> scale.batch, scale.workers(32), scale.steps(160), scale.examples(160)
    (160.0, 5.0, 2.0, 2.0)
    """

    noise: float
    signal: float

    @property
    def batch(self) -> float:
        """B in examples; infinite where no gradient is seen for all the noise."""
        return inf if self.signal <= 0 else max(0.0, self.noise) / self.signal

    def workers(self, batch_size: int) -> float:
        """How many workers with batches of this size are useful, B / batch_size; beyond, each brings less and less.

        With as many a run takes about twice the fewest possible steps, and twice the fewest examples (eq. 2.11).
        """
        return self.batch / whole(batch_size, "batch_size")

    def steps(self, batch: float) -> float:
        """How many times the fewest possible steps a run takes whose joined batch has so many examples (eq. 2.7)."""
        return 1 + self.batch / number(batch, "batch", above=True)

    def examples(self, batch: float) -> float:
        """How many times the fewest possible examples such a run takes."""
        return 1 + number(batch, "batch", above=True) / self.batch if self.batch else inf

    @classmethod
    def smoothed(cls, noise: Iterable[Iterable[float]], signal: Iterable[Iterable[float]]) -> NoiseScale:
        """Of all peers' estimates in each round: moving averages of both, as their ratio is not to be averaged.

        Raises SettingError where there are none.
        """
        averages = []
        for rounds in (noise, signal):
            total = weight = 0.0
            for each in rounds:
                if known := [it for it in each if not isnan(it)]:
                    total, weight = _DECAY * total + fmean(known), _DECAY * weight + 1
            if not weight:
                raise SettingError(
                    "Nobody has compared gradients in this run: train by "
                    "lk.algorithms.Measured(lk.algorithms.AllReduce())."
                )
            averages.append(total / weight)
        return cls(*averages)


def estimates(small: T, large: T, each: int, joined: int) -> tuple[T, T]:
    """Unbiased estimates of tr Σ and |G|² by the squared norms of gradients of `each` and of `joined` examples.

    Those of the smaller batch are a part of the larger one. arXiv:1812.06162, appendix A.1; the norms may be tensors.

    >>> estimates(small=1.0, large=0.5, each=1, joined=2)
    (1.0, 0.0)
    """
    noise = (small - large) / (1 / each - 1 / joined)
    return noise, (joined * large - each * small) / (joined - each)
