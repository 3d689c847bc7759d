"""Split work among peers: 𝒯 = 𝒯₁ ∪ … ∪ 𝒯ₙ, every item to exactly one of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from labkit.checks import Floats, Integers, generator, numbers, one_of, whole
from labkit.errors import PartitionError
from labkit.plots.bars import ownership
from labkit.plots.panel import Picture
from labkit.text import a, listed, name_all, short, some

__all__ = ["Partition", "PartitionCheck", "split"]


def split(
    items: Any, parts: int, how: str = "block", *, weights: Sequence[float] | None = None, seed: int = 0
) -> Partition:
    """Split n items into `parts` disjoint parts that together hold every item: 𝒯 = ∪ 𝒯ᵢ, 𝒯ᵢ ∩ 𝒯ⱼ = ∅.

    `items` is a count n (the items are then 0 … n−1) or any sequence or array (split along its first axis).

    - `block`: neighbours stay together; sizes differ by at most one.
    - `cyclic`: item k goes to part k mod parts, as cards are dealt.
    - `weighted`: blocks proportional to `weights`, rounded by largest remainder, so that every size lies within one
      of n·wᵢ/Σw (Hamilton's method; Balinski & Young, Fair Representation, 1982). A small weight may get no item.
    - `random`: the items are shuffled by `seed`, then cut into blocks.

    Raises PartitionError for a count below one, more parts than items, unusable weights, or an unknown `how`.

    >>> split("abcde", parts=2).parts
    (('a', 'b', 'c'), ('d', 'e'))
    >>> split(6, parts=2, how="cyclic").parts
    ((0, 2, 4), (1, 3, 5))
    >>> split(10, parts=3, how="weighted", weights=[1, 1, 0.5]).sizes
    (4, 4, 2)
    """
    items = as_items(items)
    n, k = len(items), whole(parts, "parts", PartitionError)
    if n == 0:
        raise PartitionError("there are no items to split; give at least one.")
    if k > n:
        raise PartitionError(f"{k:,} parts are more than {n:,} items, so some would be empty; ask for at most {n:,}.")
    one_of(how, "how", _HOW, PartitionError)
    if (weights is not None) != (how == "weighted"):
        raise PartitionError("weights and how='weighted' belong together; give both or neither.")
    return Partition(items, tuple(_HOW[how](n, k, weights, seed)), how)


def _weighted(n: int, k: int, weights: Any, seed: Any) -> tuple[Integers, ...]:
    w = numbers(weights, "weights", PartitionError)
    if w.shape != (k,):
        raise PartitionError(f"{w.size} weights do not fit {k} parts; give one weight for each part.")
    if not (np.isfinite(w).all() and (w >= 0).all() and w.max() > 0):
        raise PartitionError(f"the weights are {name_all(w)}; they must be finite, none negative, and not all zero.")
    return tuple(np.split(np.arange(n, dtype=np.int64), np.cumsum(largest_remainders(n, w))[:-1]))


def largest_remainders(n: int, weights: Floats) -> Integers:
    """Whole shares of n items by weight (Hamilton's method): round down, then one more for the largest remainders."""
    weights = weights / weights.max()  # first, so that huge weights do not overflow in their sum
    quota = n * (weights / weights.sum())
    size: Integers = np.floor(quota).astype(np.int64)
    size[np.argsort(size - quota, kind="stable")[: n - size.sum()]] += 1
    return size


_HOW: dict[str, Callable[[int, int, Any, Any], Sequence[Integers]]] = {
    "block": lambda n, k, weights, seed: np.array_split(np.arange(n), k),
    "cyclic": lambda n, k, weights, seed: [np.arange(part, n, k) for part in range(k)],
    "weighted": _weighted,
    "random": lambda n, k, weights, seed: np.array_split(generator(seed, PartitionError).permutation(n), k),
}
_NAMED = 12  # a sentence that names more items than this is no longer read


@dataclass(frozen=True, eq=False, repr=False)
class Partition:
    """Items and, for each part, the positions of the items it holds (int64 arrays, one per part).

    A partition behaves as the sequence of its parts, and equals another that gives the same positions to the same
    parts. It may be broken: `check()` says whether every item has exactly one owner, and `require()` insists on it.

    >>> part = Partition.of("abcdef", ["ab", "cd", "ef"])
    >>> len(part), part[0], part.owner(5)
    (3, ('a', 'b'), 2)
    >>> part.without("c").repeating("a", 2).check()
    not a partition: lost 'c'; repeated 'a' (in parts 0 and 2)
    """

    items: Any
    indices: tuple[Integers, ...]
    how: str = "given"

    def __post_init__(self) -> None:
        for part, own in enumerate(self.indices):
            if len(own) and not 0 <= np.min(own) <= np.max(own) < len(self.items):
                raise PartitionError(
                    f"Part {part} holds positions from {np.min(own)} to {np.max(own)} of {len(self.items)} items: give "
                    f"positions from 0 to {len(self.items) - 1}."
                )

    @classmethod
    def of(cls, items: Any, parts: Sequence[Sequence[Any]]) -> Partition:
        """Take parts as someone made them, broken or not, to be checked: sequences of items.

        Of equal items each is taken once before any counts as repeated. The rows of an array with several axes are
        named by their position. Raises PartitionError for a part that holds something that is not among the items, and
        for items that cannot be compared.

        >>> Partition.of(4, [[0, 1], [1, 2]]).check()
        not a partition: lost 3; repeated 1 (in parts 0 and 1)
        """
        items = as_items(items)
        positions: dict[Any, list[int]] = defaultdict(list)
        try:
            for position, name in enumerate(_names(items)):
                positions[name].append(position)
            taken = dict.fromkeys(positions, 0)
            indices = tuple(_positions(number, part, positions, taken) for number, part in enumerate(parts))
        except TypeError as error:
            raise PartitionError(
                f"these items and parts cannot be compared ({error}); give len(items) and parts of positions instead."
            ) from None
        if not indices:
            raise PartitionError("there are no parts; give at least one.")
        return cls(items, indices)

    @cached_property
    def parts(self) -> tuple[Any, ...]:
        """The items of each part: tuples, or arrays where the items are an array."""
        if hasattr(self.items, "shape"):
            return tuple(self.items[positions] for positions in self.indices)
        return tuple(tuple(self.items[k] for k in positions.tolist()) for positions in self.indices)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many items each part holds."""
        return tuple(len(positions) for positions in self.indices)

    @cached_property
    def counts(self) -> Integers:
        """How often each item is held, [n]: all ones for a true partition."""
        return np.bincount(np.concatenate(self.indices), minlength=len(self.items)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)

    def __getitem__(self, part: int) -> Any:
        return self.parts[part]

    def owners(self, position: int) -> tuple[int, ...]:
        """Every part that holds the item at `position`: one of them, none if it is lost, several if repeated."""
        k = whole(position, "position", PartitionError, least=0)
        if k >= len(self.items):
            raise PartitionError(f"there is no item at position {k}; the positions are 0 … {len(self.items) - 1}.")
        return tuple(p for p, mine in enumerate(self.indices) for _ in range(int(np.count_nonzero(mine == k))))

    def owner(self, position: int) -> int:
        """The one part that holds the item at `position`; PartitionError where there is none, or more than one."""
        match self.owners(position):
            case (part,):
                return part
            case ():
                fault = "belongs to no part"
            case many:
                fault = f"is held {_where(many)}"
        raise PartitionError(f"item {self._name([position])} {fault}; give every item to exactly one part.")

    def check(self) -> PartitionCheck:
        """Say whether every item has exactly one owner, and name each lost and each repeated item."""
        lost, repeated = np.flatnonzero(self.counts == 0).tolist(), np.flatnonzero(self.counts > 1).tolist()
        faults = [f"lost {self._name(lost)}"] if lost else []
        if repeated:
            named = [f"{self._name([k])} ({_where(self.owners(k))})" for k in repeated[:_NAMED]]
            faults.append(f"repeated {listed(named, len(repeated))}")
        sentence = f"not a partition: {'; '.join(faults)}" if faults else "every item has exactly one owner"
        names = _names(self.items)
        return PartitionCheck(
            tuple(names[k] for k in lost), tuple(names[k] for k in repeated), tuple(lost), tuple(repeated), sentence
        )

    def require(self) -> Partition:
        """Return this partition if it is one, else raise PartitionError naming the lost and the repeated items."""
        result = self.check()
        if not result:
            raise PartitionError(f"{result}; give every item to exactly one part.")
        return self

    def without(self, item: Any) -> Partition:
        """A broken copy in which no part holds `item`: it is lost."""
        k = self._position(item)
        return Partition(self.items, tuple(mine[mine != k] for mine in self.indices), "broken")

    def repeating(self, item: Any, part: int) -> Partition:
        """A broken copy in which `part` holds `item` as well: it is repeated."""
        k, to = self._position(item), whole(part, "part", PartitionError, least=0)
        if to >= len(self):
            raise PartitionError(f"there is no part {to}; the parts are 0 … {len(self) - 1}.")
        indices = tuple(np.append(mine, k) if p == to else mine for p, mine in enumerate(self.indices))
        return Partition(self.items, indices, "broken")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partition):
            return NotImplemented
        same_counts = (len(self), len(self.items)) == (len(other), len(other.items))
        return same_counts and all(map(np.array_equal, self.indices, other.indices))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fault = "" if (result := self.check()) else f"; {result}"
        return f"{self._title}: {self._sizes}{fault}"

    def plot(self, *, ax: Any = None) -> Picture:
        """Draw who owns which item, a row for each part, and below them the union with its holes and doubles."""
        few = len(self.items) <= 60
        labels = [str(name) for name in _names(self.items)] if few else None
        return ownership(self.indices, len(self.items), labels=labels, title=self._title, alt=repr(self), ax=ax)

    def _repr_mimebundle_(self, **_: Any) -> Any:
        return self.plot()._repr_mimebundle_()

    @property
    def _title(self) -> str:
        return f"Partition of {some(len(self.items), 'item')} into {some(len(self), 'part')} ({self.how})"

    @property
    def _sizes(self) -> str:
        if len(self) <= _NAMED:
            return f"sizes {name_all(self.sizes)}"
        return f"sizes from {min(self.sizes):,} to {max(self.sizes):,}"

    def _name(self, positions: Sequence[int]) -> str:
        names = _names(self.items)
        return listed([short(names[k], 60) for k in positions[:_NAMED]], len(positions))

    def _position(self, item: Any) -> int:
        names = _names(self.items)
        try:
            return int(names.index(item))
        except ValueError:
            raise PartitionError(f"{name_all([item])} is not among the items; they are {name_all(names)}.") from None


@dataclass(frozen=True, repr=False)
class PartitionCheck:
    """What `Partition.check()` found: true if nothing is lost and nothing repeated; as text, one sentence."""

    lost: tuple[Any, ...]  # items
    repeated: tuple[Any, ...]
    lost_indices: tuple[int, ...]  # their positions
    repeated_indices: tuple[int, ...]
    sentence: str

    @property
    def ok(self) -> bool:
        """Whether every item has exactly one owner."""
        return not self.lost_indices and not self.repeated_indices

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return self.sentence


def as_items(items: Any) -> Any:
    """A count as the range 0 … n−1, anything with a length and positions as it is; PartitionError for the rest."""
    if isinstance(items, dict | set | frozenset):
        raise PartitionError(f"{a(type(items).__name__)} has no order to split along; give list(items).")
    if hasattr(items, "__len__") and hasattr(items, "__getitem__"):
        if getattr(items, "shape", None) == ():
            raise PartitionError(f"{items!r} is an array without an axis to split along; give a list or a count.")
        return items
    return range(whole(items, "items", PartitionError))


def _names(items: Any) -> Any:
    """What items are called: themselves; values of a flat array; positions for rows of an array or a dataset."""
    if isinstance(items, Sequence):
        return items
    if len(getattr(items, "shape", ())) == 1:
        return items.tolist()
    return range(len(items))


def _positions(number: int, part: Any, positions: dict[Any, list[int]], taken: dict[Any, int]) -> Integers:
    mine = []
    for item in part:
        if item not in taken:
            raise PartitionError(f"part {number} holds {name_all([item])}, which is not among the items; take it out.")
        twins = positions[item]
        mine.append(twins[taken[item] % len(twins)])
        taken[item] += 1
    return np.array(mine, dtype=np.int64)


def _where(parts: Sequence[int]) -> str:
    if len(set(parts)) == 1:
        return f"{len(parts)} times in part {parts[0]}"
    if len(parts) > _NAMED:
        return f"in parts {name_all(parts, _NAMED)}"
    return f"in parts {', '.join(map(str, parts[:-1]))} and {parts[-1]}"
