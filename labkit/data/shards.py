"""Shards: how a dataset's training examples are dealt to peers: evenly, skewed, or all of them to everyone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from labkit.checks import Floats, Integers, generator, number, whole
from labkit.data.dataset import IID, Dataset, Sharding, require_room
from labkit.errors import DataError
from labkit.tasks.split import Partition

_OWN_TEST = 1 << 42  # the choice of each peer's own test examples


@dataclass(frozen=True)
class Skewed(ABC):
    """Shares drawn from a Dirichlet distribution of concentration α, and at least `least` examples for everybody."""

    alpha: float
    least: int = 1
    common_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        number(self.alpha, "alpha", above=True)
        whole(self.least, "least")

    def deal(self, dataset: Dataset, peers: int, seed: int) -> Partition:
        require_room(dataset, peers, self.least)
        random = generator(seed)
        owner = np.empty(len(dataset), dtype=np.int64)
        for members in self.groups(dataset):
            owner[random.permutation(members)] = owners_by_share(len(members), shares(self.alpha, peers, random))
        owner = topped_up(owner, peers, self.least, random)
        return Partition(range(len(dataset)), by_owner(owner, peers), repr(self))

    @abstractmethod
    def groups(self, dataset: Dataset) -> Sequence[Integers]:
        """The examples that are shared out together."""


@dataclass(frozen=True)
class Dirichlet(Skewed):
    """Skewed labels: of each class k, shares p_k ~ Dir(α, …, α) of its examples go to the peers.

    A small α gives a class to few peers, a large one deals it evenly. The distribution over peers is drawn for each
    class, as in Li et al., arXiv:2102.02079 (label skew); Hsu et al., arXiv:1909.06335, draw one over classes for each
    peer. Whoever ends with fewer than `least` examples is topped up from the largest shards.

    Raises SettingError for α ≤ 0 or `least` < 1.

    >>> import labkit as lk
    >>> shards = lk.data.load("digits").shards(100, lk.data.Dirichlet(0.1, least=8), seed=1)
    >>> shards.check(), min(shards.sizes)
    (every item has exactly one owner, 8)
    """

    def groups(self, dataset: Dataset) -> Sequence[Integers]:
        return _classes(dataset, self)


@dataclass(frozen=True)
class Quantity(Skewed):
    """Skewed sizes: shares q ~ Dir(α, …, α) of the shuffled examples go to the peers, their labels as in IID.

    Li et al., arXiv:2102.02079 (quantity skew). Whoever ends with fewer than `least` examples is topped up from the
    largest shards.

    Raises SettingError for α ≤ 0 or `least` < 1.

    >>> import labkit as lk
    >>> sizes = lk.data.load("digits").shards(4, lk.data.Quantity(0.5)).sizes
    >>> sum(sizes), max(sizes) > 2 * min(sizes)
    (1438, True)
    """

    def groups(self, dataset: Dataset) -> Sequence[Integers]:
        return [np.arange(len(dataset))]


@dataclass(frozen=True)
class ByLabel:
    """Pathological skew: every peer holds examples of exactly `labels` classes.

    After McMahan et al., arXiv:1602.05629, §3, who sort by label and give each peer two of 2·n runs; here runs never
    cross from one class into the next, a class has about as many owners as its size asks for, and they share it evenly.

    Raises SettingError for `labels` < 1; dealing raises DataError where classes, peers and labels do not fit.

    >>> import labkit as lk
    >>> digits = lk.data.load("digits")
    >>> [len(digits.y[mine].unique()) for mine in digits.shards(5, lk.data.ByLabel(2)).indices]
    [2, 2, 2, 2, 2]
    """

    labels: int = 2
    common_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole(self.labels, "labels")

    def deal(self, dataset: Dataset, peers: int, seed: int) -> Partition:
        classes = _classes(dataset, self)
        sizes = np.array([len(members) for members in classes])
        self._require_fit(dataset.name, sizes, peers)
        random = generator(seed)
        owner = np.empty(len(dataset), dtype=np.int64)
        holders = class_owners(owners_per_class(sizes, peers * self.labels, peers), peers, random)
        for members, mine in zip(classes, holders, strict=True):
            owner[random.permutation(members)] = mine[np.arange(len(members)) * len(mine) // len(members)]
        return Partition(range(len(dataset)), by_owner(owner, peers), repr(self))

    def _require_fit(self, name: str, sizes: Integers, peers: int) -> None:
        classes, wanted = len(sizes), peers * self.labels
        if self.labels > classes:
            raise DataError(
                f"{self} asks for more classes than the {classes} of {name}: take labels={classes} or less."
            )
        if wanted < classes:
            raise DataError(
                f"{peers} peers with {self.labels} classes each cannot hold the {classes} classes of {name}: take at "
                f"least {math.ceil(classes / self.labels)} peers, or labels={math.ceil(classes / peers)}."
            )
        room = int(np.minimum(sizes, peers).sum())  # an owner of a class needs an example of it
        if wanted > room:
            raise DataError(
                f"{name} has too few examples of its classes for {peers} peers with {self.labels} classes each: take "
                "fewer peers or fewer labels."
            )


@dataclass(frozen=True)
class Replicated:
    """Every peer holds all examples and sees them in the same order, as mutual learning and co-teaching need it.

    Without the `common_order` each sees them in an order of its own, as the members of a deep ensemble do. The shards
    are one array, however many peers hold it, and no partition: every item has all peers as owners.
    """

    common_order: bool = True

    def deal(self, dataset: Dataset, peers: int, seed: int) -> Partition:
        everything = np.arange(len(dataset), dtype=np.int64)
        everything.flags.writeable = False  # it is everybody's
        return Partition(range(len(dataset)), (everything,) * peers, repr(self))


@dataclass(frozen=True)
class WithTest:
    """Deals as `sharding` does (or as this Partition), and keeps a seeded `share` of each shard as the peer's own test.

    Each peer's model is then tested on its own examples too: `client accuracy` and `client loss` of every row.

    Raises SettingError for a share outside 0…1, and DataError for a shard of one example.

    >>> import labkit as lk
    >>> digits = lk.data.load("digits")
    >>> how = WithTest(Dirichlet(0.3), 0.25)
    >>> [len(own) for own in (digits.shards(2, how).indices[0], how.tests(digits, 2)[0])]
    [860, 287]
    """

    sharding: Sharding | Partition = IID()  # noqa: RUF009  frozen
    share: float = 0.2

    def __post_init__(self) -> None:
        number(self.share, "share", most=1, above=True, below=True)

    @property
    def common_order(self) -> bool:
        """Whether all peers see the same batches in the same order."""
        return bool(getattr(self.sharding, "common_order", False))

    def deal(self, dataset: Dataset, peers: int, seed: int) -> Partition:
        rest = tuple(own for own, _ in self._cut(dataset, peers, seed))
        return Partition(range(len(dataset)), rest, repr(self))

    def tests(self, dataset: Dataset, peers: int, seed: int = 0) -> tuple[Integers, ...]:
        """Each peer's own test examples, by number."""
        return tuple(own for _, own in self._cut(dataset, peers, seed))

    def _cut(self, dataset: Dataset, peers: int, seed: int) -> Iterator[tuple[Integers, Integers]]:
        dealt = self.sharding if isinstance(self.sharding, Partition) else self.sharding.deal(dataset, peers, seed)
        for k, part in enumerate(dealt.indices):
            own = np.asarray(part)
            if len(own) < 2:
                raise DataError(
                    f"The shard of peer {k} has {len(own)} examples, too few to keep one for its own test: take fewer "
                    "peers, or a split that leaves two to everybody."
                )
            size = min(len(own) - 1, max(1, round(self.share * len(own))))
            order = np.random.default_rng([seed, _OWN_TEST, 0 if self.common_order else k]).permutation(own)
            yield np.sort(order[size:]), np.sort(order[:size])


def _classes(dataset: Dataset, how: Skewed | ByLabel) -> list[Integers]:
    """The examples of each class that occurs."""
    labels = dataset.y.cpu().numpy()
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{how} deals by class, but the targets of {dataset.name} are not one class number for each example: "
            "take IID() or Quantity(alpha)."
        )
    _, counts = np.unique(labels, return_counts=True)
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])


# Owners: which peer holds which example, as one array [n], however many peers there are.


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


def owners_by_share(count: int, share: Floats) -> Integers:
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
    level = bisect_left(range(int(sizes.max())), True, key=lambda at: np.maximum(sizes - at, 0).sum() < missing) - 1
    gives = np.maximum(sizes - level, 0)
    givers = np.flatnonzero(gives)
    gives[givers[: int(gives.sum()) - missing]] -= 1  # the level was met with less than one to spare for each giver
    order = random.permutation(len(owner))
    order = order[np.argsort(owner[order], kind="stable")]  # shard after shard, each in a random order
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # place within the shard
    given = order[rank < gives[owner[order]]]
    owner = owner.copy()
    owner[given] = np.repeat(np.arange(peers), wanted)
    return owner


def by_owner(owner: Integers, peers: int) -> tuple[Integers, ...]:
    """Each peer's examples in ascending order."""
    order = np.argsort(owner, kind="stable").astype(np.int64, copy=False)
    ends = np.cumsum(np.bincount(owner, minlength=peers)).tolist()
    return tuple(order[start:end] for start, end in zip([0, *ends], ends, strict=False))


def owners_per_class(sizes: Integers, total: int, most: int) -> Integers:
    """How many of `total` owners each class gets [classes]: one, then always the class with most examples an owner.

    That is the highest-averages method (D'Hondt; Balinski & Young, Fair Representation, 1982), bounded by `most` and by
    the class's own size. There must be room: Σ min(most, sizeᵢ) ≥ total ≥ classes, and no class may be empty.
    """
    more = np.minimum(sizes, most) - 1  # owners besides the first that a class may have
    of = np.repeat(np.arange(len(sizes)), more)  # the class of each of these, and which of its owners it is
    which = 2 + np.arange(len(of)) - np.repeat(np.cumsum(more) - more, more)
    best = np.lexsort((of, -sizes[of] / which))[: total - len(sizes)]
    return 1 + np.bincount(of[best], minlength=len(sizes))


def class_owners(owners: Integers, peers: int, random: np.random.Generator) -> list[Integers]:
    """Who owns each class: `owners[c]` different peers for class c, every peer equally many classes.

    The slots, class after class in a random order, are dealt in rounds, each to all peers in a random order. A class
    has at most `peers` slots, so it lies in two rounds at most; in the second it goes to peers without it.
    """
    order = random.permutation(len(owners))
    slot = np.repeat(order, owners[order]).reshape(-1, peers)  # [rounds, peers], the class of each slot
    holder = np.empty_like(slot)
    for turn, row in enumerate(slot):
        peer = random.permutation(peers)
        if turn:
            has = np.zeros(peers, dtype=bool)
            has[holder[turn - 1][slot[turn - 1] == row[0]]] = True
            first = peer[~has[peer]][: np.count_nonzero(row == row[0])]
            has[:] = False
            has[first] = True
            peer = np.concatenate((first, peer[~has[peer]]))
        holder[turn] = peer
    return [holder[slot == c] for c in range(len(owners))]
