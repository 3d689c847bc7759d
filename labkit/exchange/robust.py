"""Robust means: averages that a few peers cannot move wherever they like, whatever they send."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from labkit import tree
from labkit.checks import whole
from labkit.errors import ExchangeError, LabkitError
from labkit.exchange.gather import Gathered
from labkit.exchange.group import RankGroup
from labkit.tree import Tree


class Rule(ABC):
    """What stands in for the mean of n vectors, some of which may be anything, NaN and infinity included."""

    @property
    @abstractmethod
    def least(self) -> int:
        """The least number of peers that the rule is good for."""

    @abstractmethod
    def combine(self, x: Tensor) -> Tensor:
        """Of vectors x [n, P] one vector [P], which does not depend on their order."""


@dataclass(frozen=True)
class CoordinateMedian(Rule):
    """The median of each coordinate, for fewer than n/2 bad peers: Yin et al., arXiv:1803.01498, Def. 1.

    Of an even number of peers it is the mean of the two in the middle.

    >>> CoordinateMedian().combine(torch.tensor([[1.0], [2.0], [1e9]]))
    tensor([2.])
    """

    @property
    def least(self) -> int:
        return 1

    def combine(self, x: Tensor) -> Tensor:
        return _trimmed(x, (len(x) - 1) // 2)


@dataclass(frozen=True)
class TrimmedMean(Rule):
    """The mean of each coordinate without its `trim` largest and smallest: Yin et al., arXiv:1803.01498, Def. 2.

    Bears `trim` = b bad peers of n > 2b; without trimming it is the mean. Raises SettingError for a negative b.

    >>> TrimmedMean(1).combine(torch.tensor([[1.0], [2.0], [3.0], [1e9]]))
    tensor([2.5000])
    """

    trim: int = 1

    def __post_init__(self) -> None:
        whole(self.trim, "trim", least=0)

    @property
    def least(self) -> int:
        return 2 * self.trim + 1

    def combine(self, x: Tensor) -> Tensor:
        return _trimmed(x, self.trim)


@dataclass(frozen=True)
class Krum(Rule):
    """The vector with the smallest score s(i) = Σ ‖xᵢ − xⱼ‖² over its n−f−2 nearest xⱼ; with `keep` the mean of m such.

    Blanchard et al., arXiv:1703.02757, Sec. 4 (Krum) and 5 (Multi-Krum). Bears `bad` = f bad peers of n ≥ 2f + 3, and
    takes n² · P operations. Raises SettingError for a negative f or no m.

    >>> Krum(0).combine(torch.tensor([[1.0], [2.0], [2.1]]))
    tensor([2.])
    """

    bad: int = 1
    keep: int = 1

    def __post_init__(self) -> None:
        whole(self.bad, "bad", least=0)
        whole(self.keep, "keep")

    @property
    def least(self) -> int:
        return max(2 * self.bad + 3, self.bad + self.keep)  # of m > n − f vectors one could be bad

    def combine(self, x: Tensor) -> Tensor:
        return x[self.chosen(x)].mean(0)

    def chosen(self, x: Tensor) -> Tensor:
        """Which of the vectors [n, P] are kept, by their numbers [m]."""
        # Differences, not products of vectors: those of vectors that are close would cancel.
        squared = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
        squared = squared.nan_to_num(nan=torch.inf, posinf=torch.inf).fill_diagonal_(0)
        scores = squared.sort().values[:, 1 : len(x) - self.bad - 1].sum(1)  # without itself
        return scores.sort(stable=True).indices[: self.keep]


@dataclass(frozen=True, eq=False)
class RobustMean(Gathered):
    """x̂ = R(x₁, …, xₙ) by a rule R that a few bad peers cannot move at will; all peers weigh alike.

    Every peer must see every vector, so they travel in a ring all-gather, (n−1) · S bytes from each peer. Weights are
    left out on purpose: a bad peer would claim any. Raises ExchangeError for fewer peers than the rule is good for.

    >>> RobustMean(torch.tensor([[1.0], [2.0], [1e9]]), CoordinateMedian()).stacked()  # the vectors of three peers
    tensor([[2.]])
    """

    formula: ClassVar[str] = r"\hat x = R(x_1, \dots, x_n)"

    x: Tree
    rule: Rule

    def down(self, clients: int) -> float:
        """A server applies the rule, and sends what comes of it."""
        return self.up()

    @staticmethod
    def lockstep(messages: Sequence[RobustMean]) -> list[Tree]:
        tree.require_alike([message.x for message in messages])
        rows = torch.stack([tree.flatten(message.x) for message in messages])  # [n, P]
        robust = _combine(messages[0].rule, rows)
        return [tree.unflatten(robust.clone(), message.x) for message in messages]

    def stacked(self) -> Tree:
        return self._everyone(tree.flatten(self.x, lead=1))

    def collective(self, group: RankGroup) -> Tree:
        return self._everyone(group.all_gather(tree.flatten(self.x, lead=1)))

    def _everyone(self, rows: Tensor) -> Tree:
        return tree.unflatten(_combine(self.rule, rows).unsqueeze(0), self.x, lead=1)  # [1, …]


def require_enough(rule: Rule, peers: int, error: type[LabkitError] = ExchangeError) -> None:
    """Raise `error` where so many peers are too few for the rule."""
    if peers < rule.least:
        raise error(
            f"{rule} is good for {rule.least} peers or more, and {peers} take part: let more peers take part, or guard "
            "against fewer bad ones."
        )


def _combine(rule: Rule, rows: Tensor) -> Tensor:
    require_enough(rule, len(rows))
    return rule.combine(rows)


def _trimmed(x: Tensor, trim: int) -> Tensor:
    """The mean over peers [n, P] → [P] without the `trim` smallest and largest; NaN counts as largest."""
    if not trim:
        return x.mean(0)
    return x.sort(0).values[trim : len(x) - trim].mean(0)
