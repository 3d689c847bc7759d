"""Gather: every peer receives what every peer sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from labkit import tree
from labkit.costs.link import Link
from labkit.exchange.group import RankGroup
from labkit.exchange.message import Message, Transfer
from labkit.tree import Tree


class Gathered(Message):
    """A message that goes to all peers in a ring all-gather, of (n−1) · S bytes from each peer.

    In step t of the ring's n−1 peer i hands peer i+1 the value of peer i−t (nccl-tests, doc/PERFORMANCE.md).
    """

    @property
    def gathered(self) -> Tree:
        """All that travels, of S bytes."""
        return self.x

    def bytes(self, peers: int) -> float:
        return (peers - 1) * tree.nbytes(self.gathered)

    def seconds(self, peers: int, link: Link) -> float:
        return link.seconds(self.bytes(peers), peers - 1)

    def transfers(self, peers: int) -> list[Transfer]:
        return [Transfer(i, (i + 1) % peers, self.bytes(peers)) for i in range(peers) if peers > 1]

    def down(self, clients: int) -> float:
        return clients * self.up()


@dataclass(frozen=True, eq=False)
class Gather(Gathered):
    """(x₁, …, xₙ) to everyone: the reply has a leading dimension n; on the wire a ring all-gather of (n−1) · S bytes.

    >>> import torch
    >>> Gather.lockstep([Gather(torch.tensor(1)), Gather(torch.tensor(2))])[0]
    tensor([1, 2])
    """

    formula: ClassVar[str] = r"x_1, \dots, x_n \;\to\; (x_1, \dots, x_n) \text{ everywhere}"

    x: Tree

    @staticmethod
    def lockstep(messages: Sequence[Gather]) -> list[Tree]:
        sent = [message.x for message in messages]
        tree.require_alike(sent)
        return [tree.map(lambda *leaves: torch.stack(leaves), *sent) for _ in sent]

    def stacked(self) -> Tree:
        return tree.map(lambda leaf: leaf.unsqueeze(0), self.x)  # [1, n, …]

    def collective(self, group: RankGroup) -> Tree:
        return tree.map(lambda leaf: group.all_gather(leaf).unsqueeze(0), self.x)  # [1, n, …]
