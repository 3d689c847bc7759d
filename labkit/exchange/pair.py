"""Pair: a peer averages with one neighbour that chance picks, while all others go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from labkit import tree
from labkit.costs.link import Link
from labkit.exchange.message import Transfer
from labkit.exchange.parcel import unwrapped, wrapped
from labkit.exchange.request import Line, Request
from labkit.exchange.topologies import choose
from labkit.exchange.topology import Topology
from labkit.tree import Tree

_PARTNERS = 1 << 42  # the choice of neighbours, apart from all other random choices of a run


@dataclass(frozen=True, eq=False)
class Pair(Request):
    """xᵢ ← (xᵢ + xⱼ)/2 + uᵢ and xⱼ ← (xᵢ + xⱼ)/2, in one, for a random neighbour j (arXiv:1710.06952, Alg. 1).

    xᵢ and xⱼ are what both have when they meet; `x` is the update uᵢ that the peer made from what it had before, and
    the reply is the new xᵢ. `topology` is a name such as "ring", a `Topology`, or a matrix W [n, n]; each of a peer's
    neighbours in it is equally likely, and a peer that has none adds its update only. Both send S bytes.
    """

    formula: ClassVar[str] = r"x_i \leftarrow \tfrac12 (x_i + x_j) + u_i, \qquad x_j \leftarrow \tfrac12 (x_i + x_j)"

    x: Tree
    topology: str | Topology | ArrayLike = "ring"

    def __post_init__(self) -> None:
        if not isinstance(self.topology, str | Topology):
            object.__setattr__(self, "topology", Topology.of(self.topology))

    @property
    def value(self) -> Tree:
        return self.x

    def partner(self, peer: int, round: int, seed: int, peers: int) -> int | None:
        """j for this peer in this round: the seed decides, on every engine alike."""
        near = choose(self.topology, peers).neighbours(peer)
        if len(near) < 2:
            return near[0] if near else None
        return near[int(np.random.default_rng([seed, _PARTNERS, round, peer]).integers(len(near)))]

    @staticmethod
    def average(one: Tree, other: Tree) -> Tree:
        """What both have after they met."""
        return tree.map(lambda a, b: (a + b) / 2, one, other)

    def meet(self, peer: int, partner: int | None, line: Callable[[int], Line]) -> tuple[Tree, int]:
        """On a cluster: xᵢ as it is after peer i has met peer j, and how often it had been changed before.

        `line(k)` leads to who keeps xₖ, and lends it to one at a time. Both are borrowed until both are given back, so
        that nothing of third peers gets in between; and always the one of the lower number first, so that nobody waits
        in a circle, which the paper avoids by a bipartite graph.
        """
        lent = {k: line(k).ask(k) for k in sorted({peer} if partner is None else {peer, partner})}
        held = {k: tree.map(lambda leaf: leaf[0], unwrapped(body, self.x)) for k, (_, body) in lent.items()}
        mine = held[peer]
        if partner is not None:
            mine = self.average(mine, held[partner])
            line(partner).tell(partner, wrapped(mine))
        mine = tree.map(torch.add, mine, self.x)
        line(peer).tell(peer, wrapped(mine))
        return mine, lent[peer][0]

    def bytes(self, peers: int) -> float:
        social = int(np.count_nonzero(choose(self.topology, peers).degrees))
        return 2 * social / peers * tree.nbytes(self.x)

    def there_and_back(self, link: Link) -> tuple[float, float]:
        once = link.seconds(tree.nbytes(self.x), 1)
        return once, once

    def transfers(self, peers: int) -> list[Transfer]:
        """What is sent on average, as chance picks one of the neighbours."""
        size, topology = tree.nbytes(self.x), choose(self.topology, peers)
        near = {i: topology.neighbours(i) for i in range(peers)}
        there = [Transfer(i, j, size / len(near[i])) for i in near for j in near[i]]
        return there + [Transfer(it.target, it.source, it.nbytes) for it in there]
