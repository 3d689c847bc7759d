"""HalfMean: every peer receives the average of what all peers sent in 16 bits, at half an all-reduce's bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from labkit import tree
from labkit.costs.link import Link
from labkit.exchange.collectives import Move, cut
from labkit.exchange.gather import Gather
from labkit.exchange.group import Group
from labkit.exchange.mean import Mean
from labkit.exchange.message import Message, Transfer
from labkit.tree import Tree


@dataclass(frozen=True, eq=False)
class HalfMean(Message):
    """x̄ = C(Σⱼ wⱼ xⱼ / Σⱼ wⱼ) of vectors x [P] in 16 bits, where C rounds the mean to 16 bits as well.

    Numbers that were rounded again at each step of a ring would lose more with every peer. So each rank receives its
    n-th part of everybody's vector, adds it up in double precision, rounds once, and hands the result to all others:
    2(n−1)/n · 2P bytes from each peer in 2(n−1) steps, half of a ring's in single precision for every n. A rank
    that holds K peers hands out each of its K vectors, because their sum would have to be rounded once more.
    """

    formula: ClassVar[str] = r"\bar x = C\Big(\sum_j w_j\,x_j \,\big/\, \sum_j w_j\Big)"

    x: Tensor
    weight: float | Tensor | None = None

    @property
    def value(self) -> Tree:
        return self.x

    @staticmethod
    def lockstep(messages: Sequence[Message]) -> list[Tree]:
        sent = cast(Sequence[HalfMean], messages)
        means = Mean.lockstep([Mean(message.x.double(), message.weight) for message in sent])
        return [tree.map(lambda mean: mean.to(sent[0].x.dtype), mean) for mean in means]

    def stacked(self) -> Tree:
        return tree.map(lambda mean: mean.to(self.x.dtype), Mean(self.x.double(), self.weight).stacked())  # [1, P]

    def collective(self, group: Group) -> Tree:
        rank, size = group.rank, group.size
        weights = self._weights(group)
        parts = cut(self.x.T, size)  # [P/n, K] for each rank
        received = [parts[rank]] * size
        for step in range(1, size):
            to, source = (rank + step) % size, (rank - step) % size
            like = self.x.new_empty(len(parts[rank]), group.blocks[source])
            came = group.exchange(Move(parts[to], to, like, source, chunk=to))
            received[source] = cast(Tensor, came)
        mean = Mean(torch.cat(received, dim=-1).T.double(), weights).stacked()  # [1, P/n]
        whole = cut(self.x.new_empty(self.x.shape[-1]), size)  # [P/n] from each rank
        whole[rank] = cast(Tensor, mean)[0].to(self.x.dtype)
        for step in range(1, size):
            to, source = (rank + step) % size, (rank - step) % size
            came = group.exchange(Move(whole[rank], to, whole[source], source, chunk=rank))
            whole[source] = cast(Tensor, came)
        return torch.cat(whole).unsqueeze(0)  # [1, P]

    def _weights(self, group: Group) -> Tensor | None:
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
