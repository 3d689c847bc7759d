"""Request: a message to one who answers it alone, so that nobody waits for everybody's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn, Protocol, cast

from torch import Tensor

from labkit.costs.link import Link
from labkit.errors import ExchangeError
from labkit.exchange.group import Group
from labkit.exchange.message import Message
from labkit.tree import Tree


class Line(Protocol):
    """A connection of this process to one that answers requests, of its own or of another machine."""

    def ask(self, head: int, body: bytes = b"") -> tuple[int, bytes]:
        """Send a number and the bytes of a tree, and wait for the answer's."""

    def tell(self, head: int, body: bytes) -> None:
        """Send a number and the bytes of a tree, which are not answered."""


class Request(Message):
    """What one peer asks of a server or of another peer; the reply is what that one then has, as soon as it may.

    Only rounds of an asynchronous algorithm (`asynchronous = True`) yield requests, and each round ends with one:
    `peer.params = yield request`. At a barrier a request is refused with ExchangeError.
    """

    @abstractmethod
    def there_and_back(self, link: Link) -> tuple[float, float]:
        """Seconds that the request travels, and that the reply does."""

    def seconds(self, peers: int, link: Link) -> float:
        return sum(self.there_and_back(link))

    def arrivals(self, ready: Tensor, link: Link) -> Tensor:
        """Nobody waits for anybody."""
        return ready + self.seconds(len(ready), link)

    def split(self) -> list[Request]:
        """The requests of the K peers that are stacked in this one."""
        fields = {n: _rows(value) for n, value in vars(self).items() if isinstance(value, Tensor | dict)}
        message: Any = self
        return [replace(message, **dict(zip(fields, row, strict=True))) for row in zip(*fields.values(), strict=True)]

    # -- as a barrier it has no meaning

    @staticmethod
    def lockstep(messages: Sequence[Message]) -> list[Tree]:
        _refuse(messages[0])

    def stacked(self) -> Tree:
        _refuse(self)

    def collective(self, group: Group) -> Tree:
        _refuse(self)


def _rows(value: Tree) -> Sequence[Tree]:
    if isinstance(value, Tensor):
        return value.unbind()
    each = zip(*(leaf.unbind() for leaf in value.values()), strict=True)
    return [dict(zip(value, leaves, strict=True)) for leaves in each]


def _refuse(message: Message) -> NoReturn:
    name = type(cast(object, message)).__name__
    raise ExchangeError(
        f"{name} is a request, which one machine answers without a barrier: let the algorithm that yields it say "
        "asynchronous = True, and put no wrapper around it."
    )
