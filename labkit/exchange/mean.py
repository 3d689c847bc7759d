"""Mean: every peer receives the (weighted) average of what all peers sent; HalfMean: the same in 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from typing import ClassVar, cast

import torch
from torch import Tensor

from labkit import tree
from labkit.costs.link import Link
from labkit.errors import ExchangeError
from labkit.exchange.collectives import cut, form
from labkit.exchange.gather import Gather
from labkit.exchange.group import RankGroup
from labkit.exchange.message import Message, Transfer
from labkit.tree import Tree


class Kind(Enum):
    """What a mean is of; whoever compresses, clips or adds noise does so where it is defined."""

    GRADIENT = "gradients"
    CHANGE = "changes of parameters"  # x − start
    CONTROL = "changes of control variates"
    PARAMETERS = "parameters"  # of peers that have no start in common
    PREDICTIONS = "predictions"  # on inputs that are others each time
    NUMBER = "numbers"  # counted or measured, of which nothing more is known

    @property
    def adds_up(self) -> bool:
        """Whether only the sum over the rounds counts, so that what is left out of one may be sent in the next."""
        return self in (Kind.GRADIENT, Kind.CHANGE, Kind.CONTROL)


@dataclass(frozen=True, eq=False)
class Mean(Message):
    """x̄ = Σⱼ wⱼ xⱼ / Σⱼ wⱼ, on the wire as an all-reduce: torch's own ("native") or "naive", "ring", "tree".

    All forms send 2(n−1) · S bytes in all, which is optimal (Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002);
    they differ in how many of them pass one link, see `labkit.exchange.collectives`. `start` is the point that all
    peers set out from, where x are parameters, and `kind` what x are: both are not sent, and for wrappers, which act on
    the change since then. Without a kind x are changes where there is a start, else the parameters or gradients if
    they look like these, and numbers otherwise. Weights travel too, unless every peer knows their `total`, Σⱼ wⱼ.
    Raises SettingError for another form, ExchangeError for weights that add up to nothing.

    >>> import torch
    >>> Mean.lockstep([Mean(torch.tensor([0.0])), Mean(torch.tensor([4.0]), weight=3)])
    [tensor([3.]), tensor([3.])]
    """

    unsent: ClassVar[frozenset[str]] = frozenset({"start"})
    shared: ClassVar[frozenset[str]] = frozenset({"total"})
    formula: ClassVar[str] = r"\bar x = \sum_j w_j\,x_j \,\big/\, \sum_j w_j"

    x: Tree
    weight: float | Tensor | None = None
    form: str = "native"
    start: Tree | None = None
    kind: Kind | None = None
    total: float | None = None

    def __post_init__(self) -> None:
        form(self.form)

    @staticmethod
    def lockstep(messages: Sequence[Mean]) -> list[Tree]:
        tree.require_alike([message.x for message in messages])
        weights = [1.0 if message.weight is None else float(message.weight) for message in messages]
        total = _require_positive(sum(weights))
        weighted = [tree.map(lambda leaf, w=w: w * leaf, m.x) for m, w in zip(messages, weights, strict=True)]
        mean = tree.map(lambda *parts: torch.stack(parts).sum(0) / total, *weighted)
        return [tree.map(torch.clone, mean) for _ in messages]

    def stacked(self) -> Tree:
        if self.weight is None:
            return tree.map(lambda leaf: _real(leaf).mean(0, keepdim=True), self.x)  # [1, …]
        weight = self._weights()
        share = weight / _require_positive(float(weight.sum()))
        return tree.map(lambda leaf: _weighted_sum(share, leaf).unsqueeze(0), self.x)

    def collective(self, group: RankGroup) -> Tree:
        if self.weight is None:
            mean = tree.flatten(tree.map(lambda leaf: _real(leaf).sum(0), self.x))  # [P]
            mean = group.all_reduce(mean, self.form) / sum(group.blocks)
        else:
            weight = self._weights()
            total = tree.flatten(tree.map(lambda leaf: _weighted_sum(weight, leaf), self.x))
            if self.total is not None:
                mean = group.all_reduce(total, self.form) / _require_positive(self.total)
            else:
                sums = torch.cat([total, weight.sum().to(total).reshape(1)])  # weights travel with what they weigh
                sums = group.all_reduce(sums, self.form)
                mean = sums[:-1] / _require_positive(float(sums[-1]))
        parts = tree.unflatten(mean.unsqueeze(0), self.x, lead=1)  # [1, …]
        return tree.map(lambda part, leaf: part.to(_real_dtype(leaf)), parts, self.x)

    def _weights(self) -> Tensor:
        first = tree.leaves(self.x)[0]
        return torch.as_tensor(self.weight).to(first.device, _real_dtype(first)).expand(len(first))  # [K]

    def bytes(self, peers: int) -> float:
        numbers, itemsize = self._vector()
        return 2 * (peers - 1) / peers * numbers * itemsize

    def seconds(self, peers: int, link: Link) -> float:
        numbers, itemsize = self._vector()
        return form(self.form).seconds(peers, numbers * itemsize, link)

    def transfers(self, peers: int) -> list[Transfer]:
        numbers, itemsize = self._vector()
        traffic = form(self.form).traffic(peers, numbers)
        return [Transfer(source, target, count * itemsize) for (source, target), count in traffic.items()]

    def up(self) -> float:
        return tree.size(self.x) * self._vector()[1]

    def _vector(self) -> tuple[int, int]:
        """How many numbers the vector has that travels, and the bytes of each."""
        dtype = reduce(torch.promote_types, map(_real_dtype, tree.leaves(self.x)))
        return tree.size(self.x) + (self.weight is not None and self.total is None), dtype.itemsize


@dataclass(frozen=True, eq=False)
class HalfMean(Message):
    """x̄ = C(Σⱼ wⱼ xⱼ / Σⱼ wⱼ) of vectors x [P] in 16 bits, where C rounds the mean to 16 bits as well.

    Numbers that were rounded again at each step of a ring would lose more with every peer. So each rank receives its
    n-th part of everybody's vector, adds it up in double precision, rounds once, and hands the result to all others:
    2(n−1)/n · 2P bytes from each peer in 2(n−1) steps, half of a ring's in single precision for every n. A rank
    that holds K peers hands out each of its K vectors, because their sum would have to be rounded once more.

    >>> HalfMean(torch.tensor([[1.0], [2.0]]).half()).stacked(), HalfMean(torch.zeros(500).half()).bytes(peers=2)
    (tensor([[1.5000]], dtype=torch.float16), 1000.0)
    """

    formula: ClassVar[str] = r"\bar x = C\Big(\sum_j w_j\,x_j \,\big/\, \sum_j w_j\Big)"

    x: Tensor
    weight: float | Tensor | None = None

    @staticmethod
    def lockstep(messages: Sequence[HalfMean]) -> list[Tree]:
        means = Mean.lockstep([Mean(message.x.double(), message.weight) for message in messages])
        return [tree.map(lambda mean: mean.to(messages[0].x.dtype), mean) for mean in means]

    def stacked(self) -> Tree:
        return tree.map(lambda mean: mean.to(self.x.dtype), Mean(self.x.double(), self.weight).stacked())  # [1, P]

    def collective(self, group: RankGroup) -> Tree:
        weights = self._weights(group)
        parts = cut(self.x.T, group.size)  # [P/n, K] for each rank
        mine = group.all_to_all(parts, [self.x.new_empty(len(parts[group.rank]), peers) for peers in group.blocks])
        mean = cast(Tensor, Mean(torch.cat(mine, dim=-1).T.double(), weights).stacked())[0].to(self.x.dtype)  # [P/n]
        whole = group.all_to_all([mean] * group.size, cut(self.x.new_empty(self.x.shape[-1]), group.size))
        return torch.cat(whole).unsqueeze(0)  # [1, P]

    def _weights(self, group: RankGroup) -> Tensor | None:
        """All ranks' weights [n], in single precision."""
        if self.weight is None:
            return None
        return group.all_gather(torch.as_tensor(self.weight).to(self.x.device, torch.float32).expand(len(self.x)))

    def bytes(self, peers: int) -> float:
        return 2 * (peers - 1) / peers * self.x.nbytes + (peers - 1) * self._weight_bytes

    def seconds(self, peers: int, link: Link) -> float:
        steps = (peers - 1) * (2 + bool(self._weight_bytes))
        return link.seconds(self.bytes(peers), steps)

    def transfers(self, peers: int) -> list[Transfer]:
        parts = [part.nbytes for part in cut(self.x, peers)]
        ends = [(i, j) for i in range(peers) for j in range(peers) if i != j]
        weights = [] if self.weight is None else Gather(torch.empty(1)).transfers(peers)
        return [Transfer(i, j, parts[i] + parts[j]) for i, j in ends] + weights

    @property
    def _weight_bytes(self) -> int:
        return 0 if self.weight is None else 4


def _real_dtype(leaf: Tensor) -> torch.dtype:
    return leaf.dtype if leaf.is_floating_point() else torch.get_default_dtype()


def _real(leaf: Tensor) -> Tensor:
    return leaf.to(_real_dtype(leaf))


def _weighted_sum(weight: Tensor, leaf: Tensor) -> Tensor:
    """Σₖ wₖ xₖ over the first dimension, as one product of a vector and a matrix."""
    flat = _real(leaf).flatten(1) if leaf.dim() > 1 else _real(leaf)
    return (weight.to(flat) @ flat).view(leaf.shape[1:])


def _require_positive(total: float) -> float:
    if not total > 0:
        raise ExchangeError(
            f"The weights of a weighted mean add up to {total:g}: give weights of which at least one is above zero, "
            "such as each peer's number of examples."
        )
    return total
