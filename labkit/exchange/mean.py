"""Mean: every peer receives the (weighted) average of what all peers sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from labkit import tree
from labkit.costs.link import Link
from labkit.exchange.group import Group
from labkit.exchange.message import Message
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

    formula: ClassVar[str] = r"\bar x = \sum_j w_j\,x_j \,\big/\, \sum_j w_j"

    x: Tree
    weight: float | Tensor | None = None

    @property
    def value(self) -> Tree:
        return self.x

    @staticmethod
    def lockstep(messages: Sequence[Message]) -> list[Tree]:
        sent = cast(Sequence[Mean], messages)
        tree.require_alike([message.x for message in sent])
        weights = [1.0 if message.weight is None else float(message.weight) for message in sent]
        weighted = [tree.map(lambda leaf, w=w: w * leaf, m.x) for m, w in zip(sent, weights, strict=True)]
        mean = tree.map(lambda *parts: torch.stack(parts).sum(0) / sum(weights), *weighted)
        return [tree.map(torch.clone, mean) for _ in sent]

    def stacked(self) -> Tree:
        total, weight = self._weighted_sum()
        return self._everyone(total / weight)

    def collective(self, group: Group) -> Tree:
        total, weight = self._weighted_sum()
        if self.weight is None:
            return self._everyone(group.all_reduce(total) / sum(group.blocks))
        sums = group.all_reduce(torch.cat([total, weight.reshape(1)]))  # weights travel with what they weigh
        return self._everyone(sums[:-1] / sums[-1])

    def _weighted_sum(self) -> tuple[Tensor, Tensor]:
        """Σ wₖ xₖ over the K stacked peers as one vector [P], and Σ wₖ."""
        flat = tree.flatten(self.x, lead=1)  # [K, P]
        if self.weight is None:
            return flat.sum(0), torch.tensor(float(len(flat)), device=flat.device)
        weight = torch.as_tensor(self.weight).to(flat).expand(len(flat))
        return weight @ flat, weight.sum()

    def _everyone(self, flat: Tensor) -> Tree:
        peers = len(tree.leaves(self.x)[0])
        return tree.unflatten(flat.expand(peers, -1), self.x, lead=1)

    def bytes(self, peers: int) -> float:
        weight = 0 if self.weight is None else tree.leaves(self.x)[0].element_size()
        return 2 * (peers - 1) / peers * (tree.nbytes(self.x) + weight)

    def seconds(self, peers: int, link: Link) -> float:
        return 2 * (peers - 1) * link.latency + self.bytes(peers) / link.bandwidth
