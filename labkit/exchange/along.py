"""Along: any message, among the peers of each row of a mesh instead of among all of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from labkit import tree
from labkit.checks import whole
from labkit.costs.link import Link
from labkit.errors import ExchangeError, SettingError
from labkit.exchange.group import RankGroup
from labkit.exchange.linear import Linear
from labkit.exchange.message import Message, Transfer
from labkit.tree import Tree

T = TypeVar("T", int, Tensor)


@dataclass(frozen=True)
class Axes:
    """The axes of a mesh of peers, whose numbers count along the last axis first; as torch's DeviceMesh has them.

    Raises SettingError for an axis without peers.

    >>> mesh = Axes.of(data=2, tensor=2)
    >>> mesh.rows("tensor"), mesh.rows("data"), mesh.place("data", 3)
    (((0, 1), (2, 3)), ((0, 2), (1, 3)), 1)
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, **sizes: int) -> Axes:
        """Of so many peers along each axis, the outermost first."""
        return cls(tuple(sizes), tuple(whole(size, name) for name, size in sizes.items()))

    @property
    def peers(self) -> int:
        return prod(self.sizes)

    def size(self, axis: str) -> int:
        """How many peers are in a row along this axis."""
        return self.sizes[self._number(axis)]

    def place(self, axis: str, peer: T) -> T:
        """Where a peer, or each of several, stands in its row along this axis."""
        return peer // self._stride(axis) % self.size(axis)

    def row_of(self, axis: str, peer: int) -> int:
        """The first peer of the row along this axis that a peer is in."""
        return peer - self.place(axis, peer) * self._stride(axis)

    @cache  # noqa: B019  of a few meshes
    def rows(self, axis: str) -> tuple[tuple[int, ...], ...]:
        """The peers of each row along this axis."""
        size, stride = self.size(axis), self._stride(axis)
        firsts = [peer for peer in range(self.peers) if not self.place(axis, peer)]
        return tuple(tuple(first + stride * k for k in range(size)) for first in firsts)

    def _stride(self, axis: str) -> int:
        return prod(self.sizes[self._number(axis) + 1 :])

    def _number(self, axis: str) -> int:
        if axis not in self.names:
            raise SettingError(f"The mesh has no axis {axis!r}: take one of {', '.join(self.names)}.")
        return self.names.index(axis)

    def __str__(self) -> str:
        return " × ".join(f"{name}={size}" for name, size in zip(self.names, self.sizes, strict=True))


@dataclass(frozen=True, eq=False)
class Along(Linear):
    """The message, among the peers of each row along an axis of the mesh: x̄ᵢ = A(xⱼ of the peers j of i's row).

    On workers each row is a process group of its own. It costs what the message costs among as many peers as are in a
    row, and its adjoint is that of the message, along the same axis.

    >>> from labkit.exchange import Sum
    >>> mesh = Axes.of(data=2, tensor=2)
    >>> Along.lockstep([Along("data", mesh, Sum(torch.tensor(10.0**k))) for k in range(4)])
    [tensor(101.), tensor(1010.), tensor(101.), tensor(1010.)]
    """

    formula: ClassVar[str] = r"\bar x_i = A\left(x_j,\; j \in R_i\right)"

    axis: str
    mesh: Axes
    message: Message

    def __post_init__(self) -> None:
        object.__setattr__(self, "formula", self.message.formula)  # A itself, where it is known

    @property
    def x(self) -> Tree:  # type: ignore[override]
        return self.message.x

    @property
    def value(self) -> Tree:
        return self.message.value

    @property
    def name(self) -> str:
        return f"{self.message.name} along {self.axis}"

    @property
    def meeting(self) -> str:
        return f"something along {self.axis}"

    def row_of(self, peer: int) -> int:
        return self.message.row_of(peer) or self.mesh.row_of(self.axis, peer)

    @property
    def _size(self) -> int:
        return self.mesh.size(self.axis)

    # -- the three forms

    @staticmethod
    def lockstep(messages: Sequence[Along]) -> list[Tree]:
        replies: list[Any] = [None] * len(messages)
        for row, own in _rows(messages):
            for peer, reply in zip(row, type(own[0]).lockstep(own), strict=True):
                replies[peer] = reply
        return replies

    def stacked(self) -> Tree:
        _require_fit(self.mesh, len(tree.leaves(self.x)[0]))
        return self._by_row(range(self.mesh.peers), lambda row, message: message.stacked())

    def collective(self, group: RankGroup) -> Tree:
        _require_fit(self.mesh, sum(group.blocks))
        holders = [rank for rank, peers in enumerate(group.blocks) for _ in range(peers)]  # by peer
        ranks = {row: tuple(dict.fromkeys(holders[peer] for peer in row)) for row in self.mesh.rows(self.axis)}
        group.make([*ranks.values()])

        def answer(row: tuple[int, ...], message: Message) -> Tree:
            if len(ranks[row]) == 1:
                return message.stacked()
            own = group.among(ranks[row], [sum(holders[peer] == rank for peer in row) for rank in ranks[row]])
            reply = message.collective(own)
            group.sent += own.sent
            return reply

        return self._by_row(range(*group.bounds(group.rank)), answer)

    def _by_row(self, here: range, answer: Callable[[tuple[int, ...], Message], Tree]) -> Tree:
        """The replies [K, …] to the peers that are here, row by row."""
        order: list[int] = []
        replies: list[Tree] = []
        for row in self.mesh.rows(self.axis):
            at = [peer - here.start for peer in row if peer in here]
            if at and len(at) == len(here):
                return answer(row, self.message)
            if at:
                reply = answer(row, type(self.message).join([self.message], at))
                replies.append(tree.map(lambda leaf, at=at: leaf.expand(len(at), *leaf.shape[1:]), reply))
                order += at
        if not replies:
            return self.x  # of nobody
        back = torch.tensor(order).argsort()
        return tree.map(lambda *leaves: torch.cat(leaves)[back.to(leaves[0].device)], *replies)

    def adjoint(self, y: Tree) -> Along:
        if not isinstance(self.message, Linear):
            raise ExchangeError(
                f"{self.message.name} has no adjoint, along a mesh or not: take a linear message such as Sum."
            )
        return replace(self, message=self.message.adjoint(y))

    # -- what it costs

    @classmethod
    def together(cls, messages: Sequence[Message]) -> Message:
        own = [message for message in messages if isinstance(message, Along)]
        if len(own) < own[0].mesh.peers:
            return own[0]  # of this process
        each = tuple(type(row[0]).together(row) for _, row in _rows(own))
        return _Rows(own[0].axis, own[0].mesh, own[0].message, each)

    def _of_rows(self) -> tuple[Message, ...]:
        """What tells the cost of each row."""
        return (self.message,) * len(self.mesh.rows(self.axis))

    def bytes(self, peers: int) -> float:
        _require_fit(self.mesh, peers)
        each = self._of_rows()
        return sum(message.bytes(self._size) for message in each) / len(each)

    def seconds(self, peers: int, link: Link) -> float:
        """Rows exchange side by side."""
        return max(message.seconds(self._size, link) for message in self._of_rows())

    def transfers(self, peers: int) -> list[Transfer]:
        return [
            Transfer(row[it.source], row[it.target], it.nbytes)
            for row, message in zip(self.mesh.rows(self.axis), self._of_rows(), strict=True)
            for it in message.transfers(self._size)
        ]

    def arrivals(self, ready: Tensor, link: Link) -> Tensor:
        """A peer waits for its row only."""
        done = ready.clone()
        for row, message in zip(self.mesh.rows(self.axis), self._of_rows(), strict=True):
            done[[*row]] = message.arrivals(ready[[*row]], link)
        return done

    # -- as it travels it is what its message is

    @classmethod
    def join(cls, messages: Sequence[Self], order: Sequence[int] | Tensor | None = None) -> Self:
        inner = [message.message for message in messages]
        return replace(messages[0], message=type(inner[0]).join(inner, order))

    def lift(self) -> Self:
        return replace(self, message=self.message.lift())

    def _sent(self) -> dict[str, Tree]:
        return self.message._sent()

    def _with(self, fields: dict[str, Tree]) -> Self:
        return replace(self, message=self.message._with(fields))


@dataclass(frozen=True, eq=False)
class _Rows(Along):
    """Where each row of the mesh exchanges something else."""

    each: tuple[Message, ...]

    def _of_rows(self) -> tuple[Message, ...]:
        return self.each


def _rows(messages: Sequence[Along]) -> list[tuple[tuple[int, ...], list[Any]]]:
    """The peers of each row, and what they send; ExchangeError where they do not agree on the mesh and its axis."""
    first = messages[0]
    _require_fit(first.mesh, len(messages))
    for peer, message in enumerate(messages):
        if (message.axis, message.mesh) != (first.axis, first.mesh):
            raise ExchangeError(
                f"Peer 0 sends along {first.axis} of {first.mesh}, and peer {peer} along {message.axis} of "
                f"{message.mesh}: let all peers send along the same axis."
            )
    found = []
    for row in first.mesh.rows(first.axis):
        own = [messages[peer].message for peer in row]
        if len({*map(type, own)}) > 1:
            names = " and ".join(dict.fromkeys(it.name for it in own))
            raise ExchangeError(f"Peers {row} of one row send {names}: let a row send the same kind of message.")
        found.append((row, own))
    return found


def _require_fit(mesh: Axes, peers: int) -> None:
    if mesh.peers != peers:
        raise ExchangeError(f"A mesh of {mesh} has {mesh.peers} peers, and there are {peers}: take as many.")


def along(axis: str, mesh: Axes, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """The same steps, whose messages go along an axis, unless they go along one already."""
    reply = None
    while True:
        try:
            message = steps.send(reply)
        except StopIteration as end:
            return end.value
        reply = yield message if isinstance(message, Along) else Along(axis, mesh, message)
