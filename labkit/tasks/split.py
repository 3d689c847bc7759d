"""Split work among peers: 𝒯 = 𝒯₁ ∪ … ∪ 𝒯ₙ, every item to exactly one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from labkit.errors import PartitionError
from labkit.tasks.arguments import Integers, generator, name_all, numbers, whole
from labkit.tasks.partition import Partition, PartitionCheck, as_items

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
    if how not in _HOW:
        raise PartitionError(f"how={how!r} is unknown; choose one of {', '.join(_HOW)}.")
    if (weights is not None) != (how == "weighted"):
        raise PartitionError("weights and how='weighted' belong together; give both or neither.")
    return Partition(items, _HOW[how](n, k, weights, seed), how)


def _block(n: int, k: int, weights: Any, seed: Any) -> tuple[Integers, ...]:
    return tuple(np.array_split(np.arange(n, dtype=np.int64), k))


def _cyclic(n: int, k: int, weights: Any, seed: Any) -> tuple[Integers, ...]:
    return tuple(np.arange(part, n, k, dtype=np.int64) for part in range(k))


def _weighted(n: int, k: int, weights: Any, seed: Any) -> tuple[Integers, ...]:
    w = numbers(weights, "weights", PartitionError)
    if w.shape != (k,):
        raise PartitionError(f"{w.size} weights do not fit {k} parts; give one weight for each part.")
    if not (np.isfinite(w).all() and (w >= 0).all() and w.max() > 0):
        raise PartitionError(f"the weights are {name_all(w)}; they must be finite, none negative, and not all zero.")
    w = w / w.max()  # first, so that huge weights do not overflow in their sum
    quota = n * (w / w.sum())
    size = np.floor(quota).astype(np.int64)
    size[np.argsort(size - quota, kind="stable")[: n - size.sum()]] += 1  # the largest remainders
    return tuple(np.split(np.arange(n, dtype=np.int64), np.cumsum(size)[:-1]))


def _random(n: int, k: int, weights: Any, seed: Any) -> tuple[Integers, ...]:
    return tuple(np.array_split(generator(seed, PartitionError).permutation(n).astype(np.int64), k))


_HOW: dict[str, Callable[[int, int, Any, Any], tuple[Integers, ...]]] = {
    "block": _block,
    "cyclic": _cyclic,
    "weighted": _weighted,
    "random": _random,
}
