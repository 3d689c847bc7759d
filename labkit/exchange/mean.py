"""Mean: every peer receives the (weighted) average of what all peers sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from labkit import tree
from labkit.costs.link import Link
from labkit.errors import ExchangeError
from labkit.exchange.group import Group
from labkit.exchange.message import Message, Transfer
from labkit.tree import Tree


@dataclass(frozen=True, eq=False)
class Mean(Message):
    """x̄ = Σⱼ wⱼ xⱼ / Σⱼ wⱼ, on the wire as a ring all-reduce.

    A ring sends 2(n−1) messages of S/n bytes from each of n peers, which is optimal in bytes
    (Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).

    >>> import torch
    >>> Mean.lockstep([Mean(torch.tensor([0.0])), Mean(torch.tensor([4.0]), weight=3)])
    [tensor([3.]), tensor([3.])]
    """

    unsent: ClassVar[frozenset[str]] = frozenset({"start"})
    formula: ClassVar[str] = r"\bar x = \sum_j w_j\,x_j \,\big/\, \sum_j w_j"

    x: Tree
    weight: float | Tensor | None = None
    start: Tree | None = None  # the point that all peers set out from

    @property
    def value(self) -> Tree:
        return self.x

    @staticmethod
    def lockstep(messages: Sequence[Message]) -> list[Tree]:
        sent = cast(Sequence[Mean], messages)
        tree.require_alike([message.x for message in sent])
        weights = [1.0 if message.weight is None else float(message.weight) for message in sent]
        total = _require_positive(sum(weights))
        weighted = [tree.map(lambda leaf, w=w: w * leaf, m.x) for m, w in zip(sent, weights, strict=True)]
        mean = tree.map(lambda *parts: torch.stack(parts).sum(0) / total, *weighted)
        return [tree.map(torch.clone, mean) for _ in sent]

    def stacked(self) -> Tree:
        total, weight = self._weighted_sum()
        return self._divided(total, float(weight))

    def collective(self, group: Group) -> Tree:
        total, weight = self._weighted_sum()
        if self.weight is None:
            return self._divided(group.all_reduce(total), sum(group.blocks))
        sums = group.all_reduce(torch.cat([total, weight.reshape(1)]))  # weights travel with what they weigh
        return self._divided(sums[:-1], float(sums[-1]))

    def _weighted_sum(self) -> tuple[Tensor, Tensor]:
        """Σ wₖ xₖ over the K stacked peers as one vector [P], and Σ wₖ."""
        flat = tree.flatten(self.x, lead=1)  # [K, P]
        if self.weight is None:
            return flat.sum(0), torch.tensor(float(len(flat)))
        weight = torch.as_tensor(self.weight).to(flat).expand(len(flat))
        return weight @ flat, weight.sum()

    def _divided(self, total: Tensor, weight: float) -> Tree:
        mean = total / _require_positive(weight)
        return tree.unflatten(mean.unsqueeze(0), self.x, lead=1)  # [1, …]

    def bytes(self, peers: int) -> float:
        weight = 0 if self.weight is None else tree.leaves(self.x)[0].element_size()
        return 2 * (peers - 1) / peers * (tree.nbytes(self.x) + weight)

    def seconds(self, peers: int, link: Link) -> float:
        return 2 * (peers - 1) * link.latency + self.bytes(peers) / link.bandwidth

    def transfers(self, peers: int) -> list[Transfer]:
        return [Transfer(i, (i + 1) % peers, self.bytes(peers)) for i in range(peers) if peers > 1]


def _require_positive(total: float) -> float:
    if not total > 0:
        raise ExchangeError(
            f"The weights of a weighted mean add up to {total:g}: give weights of which at least one is above zero, "
            "such as each peer's number of examples."
        )
    return total
