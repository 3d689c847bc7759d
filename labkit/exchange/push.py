"""Push: a peer sends its update to a server, and receives the weights that the server then has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

from torch import Tensor

from labkit import tree
from labkit.costs.link import Link
from labkit.errors import ExchangeError
from labkit.exchange.message import Transfer
from labkit.exchange.parcel import unwrapped, wrapped
from labkit.exchange.request import Line, Request
from labkit.tree import Tree


class Server(Protocol):
    """What a server keeps, and what it makes of an update: the half of an algorithm that is not a peer's."""

    weights: dict[str, Tensor]  # w
    version: int  # how many updates made them

    def take(self, update: dict[str, Tensor], staleness: int) -> None:
        """w ← U(w, x), for an x that was made from weights of `staleness` versions ago."""


@dataclass(frozen=True, eq=False)
class Push(Request):
    """w ← U(w, xᵢ), and xᵢ's peer goes on from w; the formula of U is the server's (Li et al., OSDI 2014).

    A peer sends its S bytes, and the server as many back, which are not the peer's. On a cluster the server is a thread
    of the first worker, which others reach over a connection of their own, and so do the peers beside it. Raises
    ExchangeError for an update that has not the shapes of the weights.
    """

    formula: ClassVar[str] = r"w \leftarrow U(w, x_i), \qquad \bar x_i = w"

    x: Tree

    @property
    def value(self) -> Tree:
        return self.x

    def deliver(self, server: Server, staleness: int) -> None:
        """Let the server take the update; what it has afterwards, `server.weights`, is the reply."""
        kept = {name: tuple(leaf.shape) for name, leaf in server.weights.items()}
        sent = {n: tuple(leaf.shape) for n, leaf in self.x.items()} if isinstance(self.x, dict) else {"": self.x.shape}
        if kept != sent:
            name = next(n for n in {**kept, **sent} if kept.get(n) != sent.get(n))
            raise ExchangeError(
                f"A peer pushes {sent.get(name)} for {name or 'the weights'!r}, of which the server has "
                f"{kept.get(name)}: let every peer push a tensor for each of the model's parameters."
            )
        server.take(cast(dict[str, Tensor], self.x), staleness)

    def ask(self, line: Line, like: Tree) -> Tree:
        """On a cluster: send the updates [K, …] of this rank's peers, and receive weights [1, …] as `like`."""
        _, weights = line.ask(len(tree.leaves(self.x)[0]), wrapped(self.x))
        return unwrapped(weights, like)

    def bytes(self, peers: int) -> float:
        return tree.nbytes(self.x)

    def there_and_back(self, link: Link) -> tuple[float, float]:
        once = link.seconds(tree.nbytes(self.x), 1)
        return once, once

    def transfers(self, peers: int) -> list[Transfer]:
        """The server comes after the peers, as number `peers`."""
        return [Transfer(i, peers, tree.nbytes(self.x)) for i in range(peers)]
