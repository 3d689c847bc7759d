"""What every message knows: its formula, its lockstep form, its stacked form, its collective, and its cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch

from labkit import tree
from labkit.costs.link import Link
from labkit.exchange.group import Group
from labkit.tree import Tree


class Message(ABC):
    """What one peer yields: communication and barrier in one; the reply is what all peers' messages make together.

    In the stacked form and in a collective every tensor has a leading dimension K, the peers held in this process.
    """

    formula: ClassVar[str]

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
        """The replies [K, …] when all K peers are stacked in this message."""

    @abstractmethod
    def collective(self, group: Group) -> Tree:
        """The replies [K, …] to this rank's K peers, out of all ranks' peers."""

    @abstractmethod
    def bytes(self, peers: int) -> float:
        """Bytes that one of `peers` peers sends, for a message that is not stacked."""

    @abstractmethod
    def seconds(self, peers: int, link: Link) -> float:
        """Seconds from the last peer's message to the reply, on links of latency α and bandwidth β."""

    def lift(self) -> Self:
        """The same message with a leading peer dimension of one."""
        return self._each(_lift)

    def row(self) -> Self:
        """The first of the stacked peers' messages, which costs what each of them costs."""
        return self._each(_row)

    def _each(self, fn: Callable[[object], object]) -> Self:
        """A copy with `fn` applied to every field: messages are dataclasses, but a base class cannot say so."""
        message: Any = self
        copied: Self = replace(message, **{name: fn(value) for name, value in vars(message).items()})
        return copied


def _lift(field: object) -> object:
    if isinstance(field, torch.Tensor | dict):
        return tree.map(lambda leaf: leaf.unsqueeze(0), field)
    return torch.tensor([field]) if isinstance(field, int | float) else field


def _row(field: object) -> object:
    return tree.map(lambda leaf: leaf[0], field) if isinstance(field, torch.Tensor | dict) else field
