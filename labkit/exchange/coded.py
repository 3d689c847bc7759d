"""Coded: every peer receives the average of what all peers sent, each in a code that only decoding undoes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor

from labkit.costs.link import Link
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
