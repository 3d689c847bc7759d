"""Budget: what a run may spend until it ends between two rounds, where its number of rounds is not known before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

EVALUATIONS, SELDOM = 25, 50  # tests in a run, and rounds between two of them at most, unless its caller says


@dataclass(frozen=True)
class Budget:
    """The run ends after the round in which one of these is reached: gradient steps of a peer, and bytes that it has
    sent, both on average, or seconds of training. None is no limit; `bounded` steps were not asked for, and only see to
    it that a run ends that never comes to the others."""

    steps: int | None = None
    bytes: float | None = None
    seconds: float | None = None
    bounded: bool = False

    def share(self, steps: float, bytes: float, seconds: float) -> float:
        """How much of the budget is spent: the largest of the shares.

        >>> Budget(steps=200, bytes=1e6).share(steps=50, bytes=8e5, seconds=3.0)
        0.8...
        """
        spent = ((steps, self.steps), (bytes, self.bytes), (seconds, self.seconds))
        return max(now / most + 1e-12 for now, most in spent if most is not None)


class Spending:
    """How much of a budget a run has spent, round by round: `spent` tells a peer's steps, bytes and seconds so far.

    Its models are to be tested when it is over, and with `parts` whenever another one in `EVALUATIONS` of it is spent.
    """

    def __init__(self, budget: Budget, spent: Callable[[], tuple[float, ...]], parts: bool, begun: bool) -> None:
        self._budget, self._spent, self._parts = budget, spent, parts
        self._share = budget.share(*spent()) if begun else 0.0

    def after_round(self) -> tuple[bool, bool]:
        """Whether it is over, and whether the models are to be tested."""
        before, self._share = self._share, self._budget.share(*self._spent())
        over = self._share >= 1
        return over, over or (self._parts and int(EVALUATIONS * self._share) > int(EVALUATIONS * before))
