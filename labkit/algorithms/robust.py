"""Robust: averages that a few Byzantine peers cannot move wherever they like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from labkit.algorithms.base import Peer
from labkit.algorithms.wrapper import Exchange, Wrapper, change, restored
from labkit.errors import SettingError
from labkit.exchange import CoordinateMedian, Mean, RobustMean, Rule
from labkit.exchange.robust import require_enough


@dataclass(frozen=True)
class Robust(Wrapper):
    """x̂ = R(x₁, …, xₙ) takes the place of the mean, by a rule such as the coordinate median, a trimmed mean or Krum.

    Yin et al., arXiv:1803.01498; Blanchard et al., arXiv:1703.02757. Weights are left out, because a bad peer would
    claim any. Raises SettingError, before anything runs, for fewer peers than the rule is good for.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> attacked = lk.algorithms.Byzantine(lk.algorithms.AllReduce(), peers=(0,), scale=10.0)
    >>> lk.train(model, digits, Robust(attacked), peers=5, rounds=100).result()
    History: Robust, 5 peers, after 100 rounds test accuracy 8...%, 1.04 MB sent per peer
    """

    approximates: ClassVar[bool] = True

    rule: Rule = field(default_factory=CoordinateMedian)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rule, Rule):
            raise SettingError(
                f"{self.rule!r} is no rule: give labkit.exchange.CoordinateMedian(), TrimmedMean(1) or Krum(1)."
            )

    @property
    def sends_mean(self) -> bool:
        return False

    def check(self, peers: int) -> None:
        super().check(peers)
        require_enough(self.rule, peers, SettingError)

    def exchange(self, mean: Mean, peer: Peer, index: int) -> Exchange:
        reply = yield RobustMean(change(mean, peer), self.rule)
        return restored(reply, mean, peer)
