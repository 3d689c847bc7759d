"""Permute: every peer receives what one other peer sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from labkit import tree
from labkit.costs.link import Link
from labkit.errors import ExchangeError, SettingError
from labkit.exchange.group import RankGroup
from labkit.exchange.message import Message, Transfer
from labkit.tree import Tree


@dataclass(frozen=True, eq=False)
class Permute(Message):
    """x̄ᵢ = x of peer σ(i), for a permutation σ of the peers; of any dtype, sent point to point.

    `source` is σ as a tuple of positions among those who take part, such as `shift(n, by)` or `pairs(n)`; None is the
    left neighbour, σ(i) = i − 1 mod n. With `pairs` it is the exchange of co-teaching (Han et al., arXiv:1804.06872,
    Alg. 1). Raises SettingError for what is no permutation, ExchangeError for one of another number of peers.

    >>> import torch
    >>> Permute.lockstep([Permute(torch.tensor(i)) for i in range(3)])
    [tensor(2), tensor(0), tensor(1)]
    """

    formula: ClassVar[str] = r"\bar x_i = x_{\sigma(i)}"

    x: Tree
    source: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.source is not None and sorted(self.source) != list(range(len(self.source))):
            twice = next((i for i in self.source if self.source.count(i) > 1), None)
            wrong = f"{twice} twice" if twice is not None else f"numbers that are not 0 … {len(self.source) - 1}"
            raise SettingError(
                f"source has {wrong}: give each peer's source, with every peer named once, such as (1, 0, 3, 2)."
            )

    @staticmethod
    def lockstep(messages: Sequence[Permute]) -> list[Tree]:
        sent = [message.x for message in messages]
        tree.require_alike(sent)
        sources = messages[0].among(len(sent))
        return [tree.map(torch.clone, sent[j]) for j in sources]

    def stacked(self) -> Tree:
        sources = torch.tensor(self.among(len(tree.leaves(self.x)[0])))
        return tree.map(lambda leaf: leaf[sources.to(leaf.device)], self.x)  # [n, …]

    def collective(self, group: RankGroup) -> Tree:
        sources = self.among(sum(group.blocks))
        return group.fetch(self.x, [sources[slice(*group.bounds(rank))] for rank in range(group.size)])  # [K, …]

    def among(self, peers: int) -> tuple[int, ...]:
        """σ for so many peers."""
        if self.source is None:
            return shift(peers, 1)
        if len(self.source) != peers:
            raise ExchangeError(
                f"source permutes {len(self.source)} peers, but {peers} take part: give one source for each of them."
            )
        return self.source

    def bytes(self, peers: int) -> float:
        moved = sum(i != j for i, j in enumerate(self.among(peers)))
        return moved / peers * tree.nbytes(self.x)

    def seconds(self, peers: int, link: Link) -> float:
        return link.seconds(tree.nbytes(self.x), 1) if self.bytes(peers) else 0.0

    def transfers(self, peers: int) -> list[Transfer]:
        size = tree.nbytes(self.x)
        return [Transfer(j, i, size) for i, j in enumerate(self.among(peers)) if i != j]

    def arrivals(self, ready: Tensor, link: Link) -> Tensor:
        """A peer waits for its source only."""
        sources = torch.tensor(self.among(len(ready)))
        travel = link.seconds(tree.nbytes(self.x), 1) * (sources != torch.arange(len(ready)))
        return torch.maximum(ready, ready[sources] + travel)


def shift(n: int, by: int = 1) -> tuple[int, ...]:
    """The sources of a ring: peer i receives from peer i − `by` mod n.

    >>> shift(4, 1)
    (3, 0, 1, 2)
    """
    return tuple((i - by) % n for i in range(n))


def pairs(n: int) -> tuple[int, ...]:
    """The sources of pairs that swap: 0 ↔ 1, 2 ↔ 3, …; raises SettingError for an odd number.

    >>> pairs(4)
    (1, 0, 3, 2)
    """
    if n % 2:
        raise SettingError(f"{n} peers do not make pairs: let an even number of peers take part.")
    return tuple(i ^ 1 for i in range(n))
