"""What every message knows: its formula, its lockstep form, its stacked form, its collective, and its cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor

from labkit import tree
from labkit.costs.link import Link
from labkit.exchange.group import RankGroup
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
    shared: ClassVar[frozenset[str]] = frozenset()  # numbers that are settings, the same for all peers

    x: Tree

    @property
    def value(self) -> Tree:
        """What the peer sends."""
        return self.x

    @property
    def name(self) -> str:
        """What it is called."""
        return type(self).__name__

    @property
    def meeting(self) -> str:
        """What all peers must do at once: to send this, or some message along the same axis of a mesh."""
        return self.name

    def row_of(self, peer: int) -> int:
        """Peers of the same row must send values of the same shapes; of most messages all are in one."""
        return 0

    @staticmethod
    @abstractmethod
    def lockstep(messages: Sequence[Any]) -> list[Tree]:
        """The replies to all peers' messages, which are of this type, by the formula as it stands in the paper."""

    @abstractmethod
    def stacked(self) -> Tree:
        """The replies [K, …] when all K peers are stacked in this message, or [1, …] where all get the same."""

    @abstractmethod
    def collective(self, group: RankGroup) -> Tree:
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

    # -- among a server's clients

    def up(self) -> float:
        """Bytes that a client sends its server: those of its own value."""
        return tree.nbytes(self.value)

    def down(self, clients: int) -> float:
        """Bytes that the server sends each of so many clients back: as many, unless a message says so."""
        return self.up()

    @classmethod
    def together(cls, messages: Sequence[Message]) -> Message:
        """What tells the cost of all peers' messages: one of them, where they are alike."""
        return messages[0]

    @classmethod
    def join(cls, messages: Sequence[Self], order: Sequence[int] | Tensor | None = None) -> Self:
        """Several stacked messages as one, whose row i is row `order[i]` of all their rows one after the other.

        Raises ExchangeError where their tensors have different shapes.
        """
        first = messages[0]
        if len(messages) == 1 and order is None and not cls.unsent:
            return first
        at = None if order is None else torch.as_tensor(order)

        def rows(*leaves: Tensor) -> Tensor:
            joined = leaves[0] if len(leaves) == 1 else torch.cat(leaves)
            return joined if at is None else joined[at.to(joined.device)]

        fields: dict[str, Tree] = {}
        for name in first._sent():
            parts: list[Tree] = [getattr(message, name) for message in messages]
            tree.require_alike([tree.map(lambda leaf: leaf[0], part) for part in parts])
            fields[name] = tree.map(rows, *parts)
        return first._with(fields)

    def lift(self) -> Self:
        """The same message with a leading peer dimension of one."""
        numbers = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name not in self.shared
        }
        sent = self._sent() | {name: torch.tensor(value) for name, value in numbers.items()}
        return self._with({name: tree.map(lambda leaf: leaf.unsqueeze(0), value) for name, value in sent.items()})

    def row(self) -> Self:
        """The first of the stacked peers' messages, which costs what each of them costs."""
        return self._each(lambda leaf: leaf[0])

    def none(self) -> Self:
        """The stacked message of no peer, with zero rows: what a rank sends when none of its peers takes part."""
        return self._each(lambda leaf: leaf[:0])

    def _each(self, fn: Callable[[Tensor], Tensor]) -> Self:
        return self._with({name: tree.map(fn, value) for name, value in self._sent().items()})

    def _sent(self) -> dict[str, Tree]:
        """The fields of tensors that are sent, by name."""
        return {n: v for n, v in vars(self).items() if isinstance(v, Tensor | dict) and n not in self.unsent}

    def _with(self, fields: dict[str, Tree]) -> Self:
        """A copy with other fields, as it is sent: messages are dataclasses, but a base class cannot say so."""
        message: Any = self
        return cast(Self, replace(message, **dict.fromkeys(self.unsent), **fields))


@dataclass(frozen=True)
class Served:
    """What a message costs where the peers are a server's clients: its bytes up from each, and the reply's down to it.

    Each client has a link of its own to the server, so that all send side by side. As everywhere, `bytes` counts what a
    peer sends, and not what the server sends it. The weights of a mean, such as how many examples a client has, are
    known to the server.

    >>> from labkit.exchange import Mean
    >>> cost = Served(Mean(torch.zeros(650), weight=16.0))
    >>> cost.bytes(peers=10), cost.seconds(10, Link(latency=0.1, bandwidth=1e4))
    (2600, 0.72)
    """

    message: Message

    def bytes(self, peers: int) -> float:
        """Bytes that one of `peers` clients sends."""
        return self.message.up()

    def seconds(self, peers: int, link: Link) -> float:
        """Seconds from the last client's message to the reply."""
        return link.seconds(self.message.up() + self.message.down(peers), 2)

    def transfers(self, peers: int) -> list[Transfer]:
        """What the clients send; the server comes after them, as number `peers`."""
        return [Transfer(i, peers, self.message.up()) for i in range(peers)]

    def arrivals(self, ready: Tensor, link: Link) -> Tensor:
        """When each of m clients has its reply, [m] seconds, if they send at the moments `ready` [m]."""
        return (ready.max() + self.seconds(len(ready), link)).expand(len(ready))
