"""Request: a message to one who answers it alone, so that nobody waits for everybody's; Push to a server, Pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import ClassVar, NoReturn, Protocol, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from labkit import tree
from labkit.costs.link import Link
from labkit.errors import ExchangeError
from labkit.exchange.group import RankGroup
from labkit.exchange.message import Message, Transfer
from labkit.exchange.topologies import choose
from labkit.exchange.topology import Topology
from labkit.tree import Tree


class ServiceConnection(Protocol):
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

    def there_and_back(self, link: Link) -> tuple[float, float]:
        """Seconds that the request travels, and that the reply does."""
        once = link.seconds(tree.nbytes(self.x), 1)
        return once, once

    def seconds(self, peers: int, link: Link) -> float:
        return sum(self.there_and_back(link))

    def arrivals(self, ready: Tensor, link: Link) -> Tensor:
        """Nobody waits for anybody."""
        return ready + self.seconds(len(ready), link)

    def split(self) -> list[Self]:
        """The requests of the K peers that are stacked in this one."""
        return [self._each(itemgetter(k)) for k in range(len(tree.leaves(self.x)[0]))]

    # -- as a barrier it has no meaning

    @staticmethod
    def lockstep(messages: Sequence[Request]) -> list[Tree]:
        _refuse(messages[0])

    def stacked(self) -> Tree:
        _refuse(self)

    def collective(self, group: RankGroup) -> Tree:
        _refuse(self)


def _refuse(request: Request) -> NoReturn:
    raise ExchangeError(
        f"{type(request).__name__} is a request, which one machine answers without a barrier: let the algorithm that "
        "yields it say asynchronous = True, and put no wrapper around it."
    )


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

    >>> Push({"w": torch.zeros(250)}).there_and_back(Link(latency=0.5, bandwidth=2000))
    (1.0, 1.0)
    """

    formula: ClassVar[str] = r"w \leftarrow U(w, x_i), \qquad \bar x_i = w"

    x: Tree

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

    def ask(self, server: ServiceConnection, like: Tree) -> Tree:
        """On a cluster: send the updates [K, …] of this rank's peers, and receive weights [1, …] as `like`."""
        _, weights = server.ask(len(tree.leaves(self.x)[0]), wrapped(self.x))
        return unwrapped(weights, like)

    def bytes(self, peers: int) -> float:
        return tree.nbytes(self.x)

    def transfers(self, peers: int) -> list[Transfer]:
        """The server comes after the peers, as number `peers`."""
        return [Transfer(i, peers, tree.nbytes(self.x)) for i in range(peers)]


_PARTNERS = 1 << 42  # the choice of neighbours, apart from all other random choices of a run


@dataclass(frozen=True, eq=False)
class Pair(Request):
    """xᵢ ← (xᵢ + xⱼ)/2 + uᵢ and xⱼ ← (xᵢ + xⱼ)/2, in one, for a random neighbour j (arXiv:1710.06952, Alg. 1).

    xᵢ and xⱼ are what both have when they meet; `x` is the update uᵢ that the peer made from what it had before, and
    the reply is the new xᵢ. `topology` is a name such as "ring", a `Topology`, or a matrix W [n, n]; each of a peer's
    neighbours in it is equally likely, and a peer that has none adds its update only. Both send S bytes.

    >>> Pair(torch.zeros(250), "star").partner(peer=3, round=1, seed=0, peers=8), Pair(torch.zeros(250)).bytes(8)
    (0, 2000.0)
    """

    formula: ClassVar[str] = r"x_i \leftarrow \tfrac12 (x_i + x_j) + u_i, \qquad x_j \leftarrow \tfrac12 (x_i + x_j)"

    x: Tree
    topology: str | Topology | ArrayLike = "ring"

    def __post_init__(self) -> None:
        if not isinstance(self.topology, str | Topology):
            object.__setattr__(self, "topology", Topology.of(self.topology))

    def partner(self, peer: int, round: int, seed: int, peers: int) -> int | None:
        """j for this peer in this round: the seed decides, on every engine alike."""
        near = choose(self.topology, peers, seed, round).neighbours(peer)
        if len(near) < 2:
            return near[0] if near else None
        return near[int(np.random.default_rng([seed, _PARTNERS, round, peer]).integers(len(near)))]

    @staticmethod
    def average(one: Tree, other: Tree) -> Tree:
        """What both have after they met."""
        return tree.map(lambda a, b: (a + b) / 2, one, other)

    def meet(self, peer: int, partner: int | None, keeper: Callable[[int], ServiceConnection]) -> tuple[Tree, int]:
        """On a cluster: xᵢ as it is after peer i has met peer j, and how often it had been changed before.

        `keeper(k)` leads to who keeps xₖ, and lends it to one at a time. Both are borrowed until both are given back,
        so that nothing of third peers gets in between; and always the one of the lower number first, so that nobody
        waits in a circle, which the paper avoids by a bipartite graph.
        """
        lent = {k: keeper(k).ask(k) for k in sorted({peer} if partner is None else {peer, partner})}
        held = {k: tree.map(lambda leaf: leaf[0], unwrapped(body, self.x)) for k, (_, body) in lent.items()}
        mine = held[peer]
        if partner is not None:
            mine = self.average(mine, held[partner])
            keeper(partner).tell(partner, wrapped(mine))
        mine = tree.map(torch.add, mine, self.x)
        keeper(peer).tell(peer, wrapped(mine))
        return mine, lent[peer][0]

    def bytes(self, peers: int) -> float:
        social = int(np.count_nonzero(choose(self.topology, peers, seed=0, number=1).degrees))
        return 2 * social / peers * tree.nbytes(self.x)

    def transfers(self, peers: int) -> list[Transfer]:
        """What is sent on average, as chance picks one of the neighbours."""
        size, topology = tree.nbytes(self.x), choose(self.topology, peers, seed=0, number=1)
        near = {i: topology.neighbours(i) for i in range(peers)}
        there = [Transfer(i, j, size / len(near[i])) for i in near for j in near[i]]
        return there + [Transfer(it.target, it.source, it.nbytes) for it in there]


# -- a tree as bytes, to send to one who knows its names and shapes


def wrapped(value: Tree) -> bytes:
    """The numbers of a tree, leaf after leaf, as they lie in memory."""
    return b"".join(_bytes(leaf) for leaf in tree.leaves(value))


def unwrapped(body: bytes, like: Tree) -> Tree:
    """The stacked trees [K, …] in these bytes, each of the names, shapes and types of `like`, which is not stacked.

    Raises ExchangeError for bytes that do not hold a whole number of them.

    >>> unwrapped(wrapped(torch.ones(3, 2)), like=torch.zeros(2)).shape
    torch.Size([3, 2])
    """
    size = tree.nbytes(like)
    if not size or not body or len(body) % size:
        raise ExchangeError(
            f"A peer sends {len(body)} bytes where a model of {size} is kept: give all peers the same model."
        )
    rows = len(body) // size
    held = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    pieces = iter(torch.split(held, [rows * tree.nbytes(leaf) for leaf in tree.leaves(like)]))
    return tree.map(lambda leaf: next(pieces).clone().view(leaf.dtype).reshape(rows, *leaf.shape), like)


def _bytes(leaf: Tensor) -> bytes:
    return leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
