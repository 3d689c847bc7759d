"""Owners: which peer holds which example, as one array [n], however many peers there are."""

from __future__ import annotations

from bisect import bisect_left
from heapq import heapify, heapreplace

import numpy as np

from labkit.tasks.arguments import Floats, Integers


def shares(alpha: float, peers: int, random: np.random.Generator) -> Floats:
    """Shares [peers] that add up to one, drawn from the symmetric Dirichlet distribution Dir(α, …, α).

    They are Gamma(α) variates over their sum. These are made in logarithms as log Gamma(α+1) + log(U)/α (Marsaglia &
    Tsang, A simple method for generating gamma variables, 2000, §6), so that no α is too small or too large for them.
    """
    waits = random.standard_exponential(peers)  # −log U
    with np.errstate(over="ignore"):
        logarithms = np.log(random.standard_gamma(alpha + 1, peers)) - (waits - waits.min()) / alpha
    raw = np.exp(logarithms - logarithms.max())
    return np.asarray(raw / raw.sum(), dtype=np.float64)


def dealt(count: int, share: Floats) -> Integers:
    """The owner of each of `count` examples in a row, [count]: pᵢ of them to peer i, cut at ⌊count·Σ p⌋."""
    ends = np.floor(np.cumsum(share) * count)
    ends[-1] = count  # the sum of the shares may fall short of one by rounding
    return np.searchsorted(ends, np.arange(count), side="right").astype(np.int64)


def topped_up(owner: Integers, peers: int, least: int, random: np.random.Generator) -> Integers:
    """The owners after every peer has at least `least` examples: those who hold most give, chosen at random.

    The largest shards are levelled down to one size, so that no shard that gives ends smaller than one that does not.
    There must be `peers`·`least` examples.
    """
    sizes = np.bincount(owner, minlength=peers)
    wanted = np.maximum(least - sizes, 0)
    missing = int(wanted.sum())
    if not missing:
        return owner
    # the highest level at which all that stands out is enough
    level = bisect_left(range(int(sizes.max())), True, key=lambda at: _above(sizes, at).sum() < missing) - 1
    gives = _above(sizes, level)
    givers = np.flatnonzero(gives)
    gives[givers[: int(gives.sum()) - missing]] -= 1  # the level was met with less than one to spare for each giver
    order = random.permutation(len(owner))
    order = order[np.argsort(owner[order], kind="stable")]  # shard after shard, each in a random order
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # place within the shard
    given = order[rank < gives[owner[order]]]
    owner = owner.copy()
    owner[given] = np.repeat(np.arange(peers), wanted)
    return owner


def _above(sizes: Integers, level: int) -> Integers:
    return np.maximum(sizes - level, 0)


def parts(owner: Integers, peers: int) -> tuple[Integers, ...]:
    """Each peer's examples in ascending order."""
    order = np.argsort(owner, kind="stable").astype(np.int64, copy=False)
    ends = np.cumsum(np.bincount(owner, minlength=peers)).tolist()
    return tuple(order[start:end] for start, end in zip([0, *ends], ends, strict=False))


def slots(sizes: Integers, total: int, most: int) -> Integers:
    """How many of `total` owners each class gets [classes]: one, then always the class with most examples an owner.

    That is the highest-averages method (D'Hondt; Balinski & Young, Fair Representation, 1982), bounded by `most` and by
    the class's own size. There must be room: Σ min(most, sizeᵢ) ≥ total ≥ classes, and no class may be empty.
    """
    owners, bound = [1] * len(sizes), np.minimum(sizes, most).tolist()

    def average(c: int) -> tuple[float, int]:
        """What the class's next owner would get, negative for a heap; nothing once its bound is reached."""
        return (-sizes[c] / (owners[c] + 1) if owners[c] < bound[c] else 0.0), c

    queue = [average(c) for c in range(len(sizes))]
    heapify(queue)
    for _ in range(total - len(sizes)):
        c = queue[0][1]
        owners[c] += 1
        heapreplace(queue, average(c))
    return np.array(owners, dtype=np.int64)


def hands(owners: Integers, peers: int, random: np.random.Generator) -> list[Integers]:
    """Who owns each class: `owners[c]` different peers for class c, every peer equally many classes.

    The slots, class after class in a random order, are dealt in rounds, each to all peers in a random order. A class
    has at most `peers` slots, so it lies in two rounds at most; in the second it goes to peers without it.
    """
    order = random.permutation(len(owners))
    slot = np.repeat(order, owners[order]).reshape(-1, peers)  # [rounds, peers], the class of each slot
    holder = np.empty_like(slot)
    for number, row in enumerate(slot):
        peer = random.permutation(peers)
        if number:
            has = np.zeros(peers, dtype=bool)
            has[holder[number - 1][slot[number - 1] == row[0]]] = True
            first = peer[~has[peer]][: np.count_nonzero(row == row[0])]
            has[:] = False
            has[first] = True
            peer = np.concatenate((first, peer[~has[peer]]))
        holder[number] = peer
    return [holder[slot == c] for c in range(len(owners))]
