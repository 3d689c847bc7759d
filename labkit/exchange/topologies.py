"""The usual topologies, by name: `topologies.ring(8)`, or `choose("ring", 8)` where a name is a setting.

All have Metropolis–Hastings weights, W_ij = 1 / (1 + max(dᵢ, dⱼ)) for neighbours of degrees d (Xiao & Boyd 2004,
doi:10.1016/j.sysconle.2004.02.022), which are 1 / (d + 1) where all have the same degree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from random import Random

import numpy as np
from numpy.typing import ArrayLike

from labkit.checks import whole
from labkit.errors import ExchangeError, SettingError
from labkit.exchange.topology import Integers, Topology

_LARGEST_COMPLETE = 2000


@lru_cache(maxsize=32)
def ring(n: int) -> Topology:
    """Each peer with the one before and the one after; for n ≥ 4 the gap is 1 − (1 + 2 cos(2π/n)) / 3.

    >>> ring(8)
    ring of 8 peers: 2 neighbours each, spectral gap 0.195
    """
    return _around("ring", (whole(n, "peers"),), [(-1,), (1,)])


@lru_cache(maxsize=32)
def torus(n: int) -> Topology:
    """Rows and columns of rings, as near to a square as n can be divided; a prime n leaves one row, a ring.

    >>> torus(12)
    torus 3 × 4 of 12 peers: 4 neighbours each, spectral gap 0.4
    """
    rows = next(a for a in range(int(whole(n, "peers") ** 0.5), 0, -1) if n % a == 0)
    return _around(f"torus {rows} × {n // rows}", (rows, n // rows), [(-1, 0), (1, 0), (0, -1), (0, 1)])


@lru_cache(maxsize=32)
def star(n: int) -> Topology:
    """Peer 0 with everyone, the others with it alone.

    >>> star(9)
    star of 9 peers: 1 to 8 neighbours each, spectral gap 0.111
    """
    leaves = np.arange(1, whole(n, "peers"))
    return _metropolis("star", n, np.stack([leaves, 0 * leaves], axis=-1))


@lru_cache(maxsize=32)
def exponential(n: int) -> Topology:
    """Each peer hears those 1, 2, 4, 8, … places ahead; for even n the gap is 2 / (1 + ⌈log₂ n⌉).

    Ying et al., arXiv:2110.13363, Sec. 3: as fast as any graph of ⌈log₂ n⌉ neighbours, whatever n.

    >>> exponential(16)
    exponential graph of 16 peers: 4 neighbours each, spectral gap 0.4
    """
    return _around("exponential graph", (whole(n, "peers"),), [(2**k,) for k in range((n - 1).bit_length())])


@lru_cache(maxsize=32)
def complete(n: int) -> Topology:
    """Everyone with everyone: one round is the mean, gap 1. Raises SettingError for more than 2,000 peers.

    >>> complete(5)
    complete graph of 5 peers: 4 neighbours each, spectral gap 1
    """
    if whole(n, "peers") > _LARGEST_COMPLETE:
        raise SettingError(
            f"A complete topology of {n:,} peers has {n * n:,} weights: send a Mean instead, which gives the same."
        )
    return _around("complete graph", (n,), [(k,) for k in range(n)])


@lru_cache(maxsize=32)
def random_regular(n: int, degree: int = 4, seed: int = 0) -> Topology:
    """A connected random graph in which every peer has `degree` neighbours.

    Any such graph is about equally likely (Kim & Vu 2003, doi:10.1145/780542.780576; drawn by networkx). Raises
    SettingError for a degree that n peers cannot have.

    >>> random_regular(10, degree=3)
    random regular graph of 10 peers: 3 neighbours each, spectral gap 0...
    """
    n, degree = whole(n, "peers"), whole(degree, "degree", least=0)
    if not min(2, n - 1) <= degree < n or n * degree % 2:
        raise SettingError(
            f"No connected graph joins {n} peers with {degree} neighbours each: give a degree of 2 or more, less than "
            "the number of peers, and one of the two even."
        )
    if degree == 2:  # a connected one is a ring, which is rarely drawn
        order = np.random.default_rng(seed).permutation(n)
        return _metropolis("random regular graph", n, np.stack([order, np.roll(order, 1)], axis=-1))
    import networkx  # takes a second

    rng, sparse = Random(seed), 2 * degree < n
    while True:  # of a dense graph the edges that it lacks are drawn, for which far fewer attempts are needed
        graph = networkx.random_regular_graph(degree if sparse else n - 1 - degree, n, rng)
        graph = graph if sparse else networkx.complement(graph)
        if networkx.is_connected(graph):
            break
    return _metropolis("random regular graph", n, np.array(graph.edges, dtype=np.int64))


@lru_cache(maxsize=32)
def pairing(n: int, seed: int = 0, number: int = 0) -> Topology:
    """Random pairs for round `number`: each peer mixes with one partner; of an odd number one stays alone.

    >>> pairing(4, number=1)
    pairing of 4 peers: 1 neighbour each, spectral gap 0
    """
    order = np.random.default_rng([seed, number]).permutation(whole(n, "peers"))
    return _metropolis("pairing", n, order[: n // 2 * 2].reshape(-1, 2))


@lru_cache(maxsize=32)
def one_peer_exponential(n: int, number: int = 0) -> Topology:
    """For round `number` t the half of each peer and of the one 2^(t mod τ) places ahead, τ = ⌈log₂ n⌉.

    Ying et al., arXiv:2110.13363, Sec. 4: of n = 2^τ peers any τ rounds in a row make the exact mean, with one message
    from each peer in a round.

    >>> one_peer_exponential(8, number=1).neighbours(3)
    [5]
    """
    hops = max(1, (whole(n, "peers") - 1).bit_length())
    return _around("one-peer exponential graph", (n,), [(2 ** (number % hops),)])


_BY_NAME: dict[str, Callable[[int], Topology]] = {
    "ring": ring,
    "torus": torus,
    "star": star,
    "exponential": exponential,
    "complete": complete,
    "random_regular": random_regular,
}
_VARYING: dict[str, Callable[[int, int, int], Topology]] = {  # another one in each round
    "pairing": pairing,
    "one_peer_exponential": lambda n, _, number: one_peer_exponential(n, number),
}
NAMES = tuple(_BY_NAME)


def choose(
    topology: str | Topology | ArrayLike, n: int, seed: int | None = None, number: int | None = None
) -> Topology:
    """The topology of n peers that a setting stands for: a name, a Topology, or a matrix W [n, n].

    Names that stand for another topology in each round want to know its `number` and the run's `seed`. Raises
    SettingError for an unknown name, for one that varies without a round, or a W that is not doubly stochastic,
    ExchangeError for one of another number of peers.

    >>> choose("star", 5).neighbours(3)
    [0]
    """
    if isinstance(topology, str):
        if topology in _VARYING:
            if seed is None or number is None:
                raise SettingError(
                    f"{topology!r} is another topology in each round: give that of the round, as Gossip does, which is "
                    f"lk.exchange.topologies.choose({topology!r}, peer.present, peer.seed, peer.number)."
                )
            return _VARYING[topology](n, seed, number)
        if topology not in _BY_NAME:
            known = ", ".join([*NAMES, *_VARYING])
            raise SettingError(f"{topology!r} is no topology: give one of {known}, or your own matrix W.")
        return _BY_NAME[topology](n)
    chosen = topology if isinstance(topology, Topology) else Topology.of(topology)
    if chosen.peers != n:
        raise ExchangeError(
            f"The topology joins {chosen.peers} peers, but {n} take part: give one of as many peers, or a name such as "
            "'ring', which fits any number."
        )
    return chosen


def _around(name: str, grid: tuple[int, ...], steps: Iterable[tuple[int, ...]]) -> Topology:
    """Every place of a grid with those that lie `steps` away, over the edges; equal weights."""
    n = int(np.prod(grid))
    offsets = {tuple(int(d) % size for d, size in zip(step, grid, strict=True)) for step in steps}
    offsets.add((0,) * len(grid))
    places = np.stack(np.unravel_index(np.arange(n), grid))  # [dimensions, n]
    shape = np.array(grid)[:, None]
    columns = np.stack(
        [np.ravel_multi_index(tuple((places + np.array(o)[:, None]) % shape), grid) for o in sorted(offsets)], axis=-1
    )
    targets = np.repeat(np.arange(n), len(offsets))
    return Topology(name, n, targets, np.sort(columns, axis=1).ravel(), np.full(targets.size, 1 / len(offsets)), grid)


def of_edges(edges: Iterable[tuple[int, int]], n: int, name: str = "drawn graph") -> Topology:
    """The undirected graph of these edges, pairs of peers: what is left of 1 a peer gives itself.

    Raises SettingError for an edge between peers that there are not, or from a peer to itself.

    >>> of_edges([(0, 1), (1, 2), (2, 3), (3, 0)], 4)
    drawn graph of 4 peers: 2 neighbours each, spectral gap 0.667
    """
    ends = np.unique(np.sort(np.array(list(edges), dtype=np.int64).reshape(-1, 2), axis=1), axis=0)
    for a, b in ends[(ends[:, 0] < 0) | (ends[:, 0] == ends[:, 1]) | (ends[:, 1] >= n)].tolist():
        raise SettingError(f"An edge joins {a} and {b}: give two different peers from 0 to {n - 1}.")
    return _metropolis(name, n, ends)


def _metropolis(name: str, n: int, edges: Integers) -> Topology:
    """Metropolis–Hastings weights for undirected edges [E, 2]; what is left of 1 a peer gives itself."""
    a, b = edges.reshape(-1, 2).T
    degrees = np.bincount(np.concatenate([a, b]), minlength=n)
    weights = 1 / (1 + np.maximum(degrees[a], degrees[b]))
    own = 1 - np.bincount(np.concatenate([a, b]), weights=np.concatenate([weights, weights]), minlength=n)
    targets, sources = np.concatenate([a, b, np.arange(n)]), np.concatenate([b, a, np.arange(n)])
    order = np.lexsort((sources, targets))
    return Topology(name, n, targets[order], sources[order], np.concatenate([weights, weights, own])[order])
