"""What every message knows: its formula, its lockstep form, its stacked form, its collective, and its cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor

from labkit import tree
from labkit.costs.link import Link
from labkit.exchange.group import Group
from labkit.tree import Tree


class Transfer(NamedTuple):
    """`nbytes` bytes from peer `source` to peer `target`."""

    source: int
    target: int
    nbytes: float


class Message(ABC):
    """What one peer yields: communication and barrier in one; the reply is what all peers' messages make together.

    In the stacked form and in a collective every tensor of a message has a leading dimension K, the peers held in this
    process. A reply that is the same for all of them has a leading dimension of one, which broadcasts. A field that is
    a number belongs to one peer, as a tensor does; settings, which all peers share, are objects or strings.
    """

    formula: ClassVar[str]
    unsent: ClassVar[frozenset[str]] = frozenset()  # fields that only wrappers look at, on the peer itself

    @property
    @abstractmethod
    def value(self) -> Tree:
        """What the peer sends."""

    @staticmethod
    @abstractmethod
    def lockstep(messages: Sequence[Message]) -> list[Tree]:
        """The replies to all peers' messages, by the formula as it stands in the paper."""

    @abstractmethod
    def stacked(self) -> Tree:
        """The replies [K, …] when all K peers are stacked in this message, or [1, …] where all get the same."""

    @abstractmethod
    def collective(self, group: Group) -> Tree:
        """The replies [K, …] to this rank's K peers, out of all ranks' peers, or [1, …] where all get the same."""

    @abstractmethod
    def bytes(self, peers: int) -> float:
        """Bytes that one of `peers` peers sends, on average, for a message that is not stacked."""

    @abstractmethod
    def seconds(self, peers: int, link: Link) -> float:
        """Seconds from the last peer's message to the reply, on links of latency α and bandwidth β."""

    @abstractmethod
    def transfers(self, peers: int) -> list[Transfer]:
        """Who sends how many bytes to whom, in all; their sum is `peers` times `bytes(peers)`."""

    def arrivals(self, ready: Tensor, link: Link) -> Tensor:
        """When each of m peers has its reply, [m] seconds, if they send at the moments `ready` [m].

        Everyone waits for the last one; a message for which that is not so says when its own replies arrive.
        """
        return (ready.max() + self.seconds(len(ready), link)).expand(len(ready))

    @classmethod
    def join(cls, messages: Sequence[Self], order: Sequence[int] | Tensor | None = None) -> Self:
        """Several stacked messages as one, whose row i is row `order[i]` of all their rows one after the other.

        Raises ExchangeError where their tensors have different shapes.
        """
        first = messages[0]
        if len(messages) == 1 and order is None and not cls.unsent:
            return first
        at = None if order is None else torch.as_tensor(order)
        joined: dict[str, object] = {}
        for name, value in vars(first).items():
            if name in cls.unsent:
                joined[name] = None
            elif isinstance(value, Tensor | dict):
                parts = [cast(Tree, getattr(message, name)) for message in messages]
                tree.require_alike([tree.map(_row, part) for part in parts])
                joined[name] = tree.map(lambda *leaves: _rows(leaves, at), *parts)
            else:
                joined[name] = value
        return cast(Self, replace(cast(Any, first), **joined))

    def lift(self) -> Self:
        """The same message with a leading peer dimension of one."""
        return self._each(_lift)

    def row(self) -> Self:
        """The first of the stacked peers' messages, which costs what each of them costs."""
        return self._each(_first)

    def none(self) -> Self:
        """The stacked message of no peer, with zero rows: what a rank sends when none of its peers takes part."""
        return self._each(_none)

    def _each(self, fn: Callable[[object], object]) -> Self:
        """A copy with `fn` applied to every field: messages are dataclasses, but a base class cannot say so."""
        message: Any = self
        changed = {n: None if n in self.unsent else fn(value) for n, value in vars(message).items()}
        copied: Self = replace(message, **changed)
        return copied


def _rows(leaves: Sequence[Tensor], at: Tensor | None) -> Tensor:
    rows = leaves[0] if len(leaves) == 1 else torch.cat(list(leaves))
    return rows if at is None else rows[at.to(rows.device)]


def _lift(field: object) -> object:
    if isinstance(field, Tensor | dict):
        return tree.map(lambda leaf: leaf.unsqueeze(0), field)
    return torch.tensor([field]) if isinstance(field, int | float) and not isinstance(field, bool) else field


def _first(field: object) -> object:
    return tree.map(_row, field) if isinstance(field, Tensor | dict) else field


def _row(leaf: Tensor) -> Tensor:
    return leaf[0]


def _none(field: object) -> object:
    return tree.map(lambda leaf: leaf[:0], field) if isinstance(field, Tensor | dict) else field
