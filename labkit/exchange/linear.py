"""Linear messages: each is a linear map over all peers' vectors, and knows its adjoint, which is one again.

With them only the forward pass of a split model is written: its backward pass is the adjoints of its messages in
reverse order (R. J. Hewett and T. J. Grady, arXiv:2006.03108; `labkit.exchange.tape`). A reply is Ax of all peers'
messages together, and for all x and y ⟨Ax, y⟩ = ⟨x, Aᵀy⟩, summed over the peers. Peers' losses add up to the loss.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Self

import torch
from torch import Tensor

from labkit import tree
from labkit.costs.link import Link
from labkit.errors import ExchangeError
from labkit.exchange.collectives import FORMS
from labkit.exchange.gather import Gather
from labkit.exchange.group import RankGroup
from labkit.exchange.message import Message, Transfer
from labkit.exchange.permute import shift
from labkit.tree import Tree


class Linear(Message):
    """A message whose replies are a linear map of all peers' values."""

    @abstractmethod
    def adjoint(self, y: Tree) -> Message:
        """The message that takes each peer's gradient `y` of its reply to that of its value."""

    def detached(self) -> Self:
        """The same message, by which no gradient goes back."""
        return self._each(torch.detach)

    def on_meta(self) -> Self:
        """The same message without numbers, which still knows its adjoint."""
        return self._each(lambda leaf: torch.empty_like(leaf, device="meta"))


@dataclass(frozen=True, eq=False)
class Copy(Linear):
    """x̄ᵢ = x, which all peers hold alike; nothing travels, but gradients are summed on the way back.

    Of parameters it makes data parallelism: its adjoint is the all-reduce of the gradients.

    >>> Copy.lockstep([Copy(torch.ones(1)), Copy(torch.ones(1))]), Copy(torch.ones(1)).adjoint(torch.ones(1))
    ([tensor([1.]), tensor([1.])], Sum(x=tensor([1.])))
    """

    formula: ClassVar[str] = r"\bar x_i = x"

    x: Tree

    @staticmethod
    def lockstep(messages: Sequence[Copy]) -> list[Tree]:
        return [message.x for message in messages]

    def stacked(self) -> Tree:
        return self.x

    def collective(self, group: RankGroup) -> Tree:
        return self.x

    def adjoint(self, y: Tree) -> Sum:
        return Sum(y)

    def bytes(self, peers: int) -> float:
        return 0.0

    def seconds(self, peers: int, link: Link) -> float:
        return 0.0

    def transfers(self, peers: int) -> list[Transfer]:
        return []

    def arrivals(self, ready: Tensor, link: Link) -> Tensor:
        """Nobody waits for anybody."""
        return ready


@dataclass(frozen=True, eq=False)
class Sum(Linear):
    """x̄ = Σⱼ xⱼ to everyone; on the wire an all-reduce of 2(n−1)/n · S bytes. It is its own adjoint.

    >>> Sum.lockstep([Sum(torch.ones(1)), Sum(torch.tensor([2.0]))])
    [tensor([3.]), tensor([3.])]
    """

    formula: ClassVar[str] = r"\bar x = \sum_j x_j"

    x: Tree

    @staticmethod
    def lockstep(messages: Sequence[Sum]) -> list[Tree]:
        tree.require_alike([message.x for message in messages])
        total = tree.map(lambda *leaves: torch.stack(leaves).sum(0), *[message.x for message in messages])
        return [tree.map(torch.clone, total) for _ in messages]

    def stacked(self) -> Tree:
        return tree.map(lambda leaf: leaf.sum(0, keepdim=True), self.x)  # [1, …]

    def collective(self, group: RankGroup) -> Tree:
        total = group.all_reduce(tree.flatten(tree.map(lambda leaf: leaf.sum(0), self.x)))  # [P]
        parts = tree.unflatten(total.unsqueeze(0), self.x, lead=1)  # [1, …]
        return tree.map(lambda part, leaf: part.to(leaf.dtype), parts, self.x)

    def adjoint(self, y: Tree) -> Sum:
        return Sum(y)

    def bytes(self, peers: int) -> float:
        return 2 * (peers - 1) / peers * tree.size(self.x) * self._itemsize

    def seconds(self, peers: int, link: Link) -> float:
        return FORMS["ring"].seconds(peers, tree.size(self.x) * self._itemsize, link)

    def transfers(self, peers: int) -> list[Transfer]:
        traffic = FORMS["ring"].traffic(peers, tree.size(self.x))
        return [Transfer(i, j, count * self._itemsize) for (i, j), count in traffic.items()]

    @property
    def _itemsize(self) -> int:
        """Of a number in the one vector as which all tensors travel."""
        return reduce(torch.promote_types, [leaf.dtype for leaf in tree.leaves(self.x)]).itemsize


class AllGather(Gather, Linear):
    """(x₁, …, xₙ) to everyone, [n, …]: `Gather` with its adjoint, ReduceScatter; (n−1) · S bytes from each peer.

    >>> AllGather.lockstep([AllGather(torch.tensor([1])), AllGather(torch.tensor([2]))])[0]
    tensor([[1],
            [2]])
    """

    def adjoint(self, y: Tree) -> ReduceScatter:
        return ReduceScatter(y)


class _Parts(Linear):
    """A message of n parts [n, …], one for each peer, which go there straight: (n−1)/n · S bytes from each peer."""

    def bytes(self, peers: int) -> float:
        return (peers - 1) / peers * tree.nbytes(self.x)

    def seconds(self, peers: int, link: Link) -> float:
        return link.seconds(self.bytes(peers), peers - 1)

    def transfers(self, peers: int) -> list[Transfer]:
        part = tree.nbytes(self.x) / peers
        return [Transfer(i, j, part) for i in range(peers) for j in range(peers) if i != j]

    @staticmethod
    def parts(messages: Sequence[_Parts]) -> list[Tree]:
        """All peers' values, of which each must have a part for each peer."""
        sent = [message.x for message in messages]
        tree.require_alike(sent)
        _require_parts(sent[0], len(sent), lead=0)
        return sent


@dataclass(frozen=True, eq=False)
class ReduceScatter(_Parts):
    """x̄ᵢ = Σⱼ xⱼ[i] of values with n parts [n, …]: each peer receives the sum of its own part. Its adjoint: AllGather.

    >>> ReduceScatter.lockstep([ReduceScatter(torch.tensor([1, 2])), ReduceScatter(torch.tensor([10, 20]))])
    [tensor(11), tensor(22)]
    """

    formula: ClassVar[str] = r"\bar x_i = \sum_j x_j[i]"

    x: Tree

    @staticmethod
    def lockstep(messages: Sequence[ReduceScatter]) -> list[Tree]:
        sent = _Parts.parts(messages)
        return [tree.map(lambda *xs, i=i: torch.stack([x[i] for x in xs]).sum(0), *sent) for i in range(len(sent))]

    def stacked(self) -> Tree:
        _require_parts(self.x, len(tree.leaves(self.x)[0]), lead=1)
        return tree.map(lambda leaf: leaf.sum(0), self.x)  # [n, …]

    def collective(self, group: RankGroup) -> Tree:
        _require_parts(self.x, sum(group.blocks), lead=1)
        own = group.blocks[group.rank]

        def scattered(leaf: Tensor) -> Tensor:
            total = leaf.sum(0)  # [n, …], of the peers here
            parts = [total[slice(*group.bounds(rank))] for rank in range(group.size)]
            return torch.stack(group.all_to_all(parts, [total.new_empty(own, *total.shape[1:])] * group.size)).sum(0)

        return tree.map(scattered, self.x)  # [K, …]

    def adjoint(self, y: Tree) -> AllGather:
        return AllGather(y)


@dataclass(frozen=True, eq=False)
class AllToAll(_Parts):
    """x̄ᵢ[j] = xⱼ[i] of values with n parts [n, …]: the transpose of who has what. It is its own adjoint.

    >>> AllToAll.lockstep([AllToAll(torch.tensor([1, 2])), AllToAll(torch.tensor([10, 20]))])
    [tensor([ 1, 10]), tensor([ 2, 20])]
    """

    formula: ClassVar[str] = r"\bar x_i[j] = x_j[i]"

    x: Tree

    @staticmethod
    def lockstep(messages: Sequence[AllToAll]) -> list[Tree]:
        sent = _Parts.parts(messages)
        return [tree.map(lambda *xs, i=i: torch.stack([x[i] for x in xs]), *sent) for i in range(len(sent))]

    def stacked(self) -> Tree:
        _require_parts(self.x, len(tree.leaves(self.x)[0]), lead=1)
        return tree.map(lambda leaf: leaf.transpose(0, 1).contiguous(), self.x)  # [n, n, …]

    def collective(self, group: RankGroup) -> Tree:
        _require_parts(self.x, sum(group.blocks), lead=1)

        def transposed(leaf: Tensor) -> Tensor:
            parts = [leaf[:, slice(*group.bounds(rank))].contiguous() for rank in range(group.size)]  # [K, K_r, …]
            like = [leaf.new_empty(peers, len(leaf), *leaf.shape[2:]) for peers in group.blocks]
            return torch.cat(group.all_to_all(parts, like)).transpose(0, 1)  # [K, n, …]

        return tree.map(transposed, self.x)

    def adjoint(self, y: Tree) -> AllToAll:
        return AllToAll(y)


@dataclass(frozen=True, eq=False)
class Shift(Linear):
    """x̄ᵢ = xᵢ₋ₛ, from the peer s places before: round a ring, or along a line, whose first peers receive zeros.

    Its adjoint is the shift by −s. Each peer that has somebody to send to sends S bytes.

    >>> Shift.lockstep([Shift(torch.tensor(i + 1), ring=False) for i in range(3)])
    [tensor(0), tensor(1), tensor(2)]
    """

    shared: ClassVar[frozenset[str]] = frozenset({"by"})
    formula: ClassVar[str] = r"\bar x_i = x_{i-s}"

    x: Tree
    by: int = 1
    ring: bool = True

    @staticmethod
    def lockstep(messages: Sequence[Shift]) -> list[Tree]:
        sent = [message.x for message in messages]
        tree.require_alike(sent)
        return [
            tree.map(lambda leaf, kept=kept: leaf * kept, sent[j])
            for j, kept in zip(*messages[0].sources(len(sent)), strict=True)
        ]

    def stacked(self) -> Tree:
        sources, kept = self.sources(len(tree.leaves(self.x)[0]))
        return tree.map(lambda leaf: _masked(leaf[torch.tensor(sources).to(leaf.device)], kept), self.x)

    def collective(self, group: RankGroup) -> Tree:
        sources, kept = self.sources(sum(group.blocks))
        mine = [slice(*group.bounds(rank)) for rank in range(group.size)]
        wanted = [[j for j, is_sent in zip(sources[at], kept[at], strict=True) if is_sent] for at in mine]
        came = iter(range(len(wanted[group.rank])))
        at = [next(came) if is_sent else -1 for is_sent in kept[mine[group.rank]]]  # rows of what came
        fetched = group.fetch(self.x, wanted)

        def placed(leaf: Tensor) -> Tensor:
            zeros = leaf.new_zeros(1, *leaf.shape[1:])
            return torch.cat([leaf, zeros])[torch.tensor(at, dtype=torch.int64).to(leaf.device)]

        return tree.map(placed, fetched)

    def sources(self, peers: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """From whom each peer receives, and whether it does."""
        kept = tuple(self.ring or 0 <= i - self.by < peers for i in range(peers))
        return shift(peers, self.by), kept

    def adjoint(self, y: Tree) -> Shift:
        return Shift(y, -self.by, self.ring)

    def bytes(self, peers: int) -> float:
        return sum(it.nbytes for it in self.transfers(peers)) / peers

    def seconds(self, peers: int, link: Link) -> float:
        return link.seconds(tree.nbytes(self.x), 1) if self.transfers(peers) else 0.0

    def transfers(self, peers: int) -> list[Transfer]:
        size = tree.nbytes(self.x)
        sources, kept = self.sources(peers)
        return [Transfer(j, i, size) for i, j in enumerate(sources) if kept[i] and i != j]

    def arrivals(self, ready: Tensor, link: Link) -> Tensor:
        """A peer waits for its source only."""
        sources, kept = self.sources(len(ready))
        source = torch.tensor(sources)
        sent = torch.tensor(kept) & (source != torch.arange(len(ready)))
        travel = link.seconds(tree.nbytes(self.x), 1)
        return torch.where(sent, torch.maximum(ready, ready[source] + travel), ready)


def _masked(rows: Tensor, kept: Sequence[bool]) -> Tensor:
    return rows if all(kept) else rows * torch.tensor(kept).to(rows.device).view(-1, *[1] * (rows.dim() - 1))


def _require_parts(x: Tree, peers: int, lead: int) -> None:
    """Raise ExchangeError unless each tensor has a part for each peer, after `lead` dimensions of peers."""
    for leaf in tree.leaves(x):
        if leaf.dim() <= lead or leaf.shape[lead] != peers:
            raise ExchangeError(
                f"A value of shape {tuple(leaf.shape[lead:])} has no part for each of {peers} peers: give it a first "
                f"dimension of {peers}."
            )
