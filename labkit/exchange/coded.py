"""Coded: every peer receives the average of what all peers sent, each in a code that only decoding undoes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

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


class Code(Protocol):
    """What turns packed tensors [..., *] back into vectors [..., P]; the same for all peers."""

    def decode(self, packed: dict[str, Tensor]) -> Tensor:
        """The vectors [..., P] that the packed tensors stand for."""


@dataclass(frozen=True, eq=False)
class Coded(Message):
    """x̄ = Σⱼ wⱼ D(cⱼ) / Σⱼ wⱼ: the mean of what the codes cⱼ stand for, as one vector.

    Codes cannot be added on the way, so they travel in a ring all-gather, and everyone decodes all of them: each peer
    sends (n−1) · |c| bytes, where an all-reduce of the plain vector sends 2(n−1)/n · S. Coding therefore saves only
    while |c| < 2S/n: few peers, or a strong compressor.
    """

    formula: ClassVar[str] = r"\bar x = \sum_j w_j\,D(c_j) \,\big/\, \sum_j w_j"

    packed: dict[str, Tensor]
    code: Code
    weight: float | Tensor | None = None

    @property
    def value(self) -> Tree:
        return self.packed

    @staticmethod
    def lockstep(messages: Sequence[Message]) -> list[Tree]:
        sent = cast(Sequence[Coded], messages)
        return Mean.lockstep([Mean(message.code.decode(message.packed), message.weight) for message in sent])

    def stacked(self) -> Tree:
        return Mean(self.code.decode(self.packed), self.weight).stacked()  # [1, P]

    def collective(self, group: Group) -> Tree:
        fields = self._fields
        rows = torch.cat([_as_bytes(leaf) for leaf in fields.values()], dim=-1)  # [K, |c|]
        lengths = [_row_bytes(leaf) for leaf in fields.values()]
        pieces = torch.split(group.all_gather(rows), lengths, dim=-1)  # [n, …]
        everyone = {
            name: piece.contiguous().view(leaf.dtype).reshape(len(piece), *leaf.shape[1:])
            for (name, leaf), piece in zip(fields.items(), pieces, strict=True)
        }
        weight = everyone.pop("weight", None)
        return Mean(self.code.decode(everyone), weight).stacked()

    @property
    def _fields(self) -> dict[str, Tensor]:
        """All that travels: the packed tensors, and the weight beside what it weighs."""
        if self.weight is None:
            return self.packed
        return {**self.packed, "weight": torch.as_tensor(self.weight, dtype=torch.float32)}

    def bytes(self, peers: int) -> float:
        return Gather(self._fields).bytes(peers)

    def seconds(self, peers: int, link: Link) -> float:
        return Gather(self._fields).seconds(peers, link)

    def transfers(self, peers: int) -> list[Transfer]:
        return Gather(self._fields).transfers(peers)


def _row_bytes(leaf: Tensor) -> int:
    return math.prod(leaf.shape[1:]) * leaf.element_size()


def _as_bytes(leaf: Tensor) -> Tensor:
    """Rows [K, …] of any type as bytes [K, B]."""
    return leaf.reshape(len(leaf), math.prod(leaf.shape[1:])).contiguous().view(torch.uint8)


# -- HalfMean: every peer receives the average of what all peers sent in 16 bits, at half an all-reduce's bytes.


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
