"""Dealing: which training examples each peer has, out of what the user says about shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from labkit.algorithms import Algorithm
from labkit.algorithms.base import epochs as passes
from labkit.algorithms.base import participation, same_batches
from labkit.data import Dataset, Replicated, Sharding
from labkit.data.batches import Indices
from labkit.data.shares import Share
from labkit.data.streamed import Streamed
from labkit.errors import DataError, SettingError
from labkit.tasks.split import Partition


def dealing_of(shards: Sharding | Partition | None, algorithm: Algorithm) -> Sharding | Partition | None:
    """How the examples are dealt; whoever talks about single examples needs everybody to see the same ones."""
    deals = isinstance(shards, Partition) or callable(getattr(shards, "deal", None))
    if shards is not None and (isinstance(shards, type) or not deals):
        raise SettingError(
            f"shards={shards!r} does not say how examples are dealt: give lk.data.Dirichlet(0.3), another way of "
            "lk.data, or a Partition of the examples' numbers."
        )
    if not same_batches(algorithm):
        return shards
    if shards is not None and not getattr(shards, "common_order", False):
        raise SettingError(
            f"{type(algorithm).__name__} compares what peers make of the same batches: leave shards away, or give "
            "lk.data.Replicated()."
        )
    return Replicated() if shards is None else shards


def shares_of(
    dataset: Dataset,
    peers: int,
    dealing: Sharding | Partition | None,
    algorithm: Algorithm,
    epochs: int | None,
    seed: int,
    batch_size: int,
) -> Sequence[Indices | Share]:
    """What each peer has: examples by number, or its turns at a stream. Raises DataError or SettingError."""
    if isinstance(dataset, Streamed):
        return dataset.shares(peers, dealing, _counts(algorithm, epochs))
    return _numbered(dataset, peers, dealing, seed, batch_size)


def _counts(algorithm: Algorithm, epochs: int | None) -> bool:
    """Whether it matters how many examples a peer has: for the end of an epoch, or as its weight."""
    asks = participation(algorithm) is not None or passes(algorithm) is not None or same_batches(algorithm)
    return epochs is not None or asks


def _numbered(
    dataset: Dataset, peers: int, shards: Sharding | Partition | None, seed: int, batch_size: int
) -> Sequence[Indices]:
    """Each peer's training examples; a partition of the user's own is taken as it is, broken or not."""
    if isinstance(shards, Partition):
        dealt: Sequence[Indices] = [_numbers(part) for part in shards]
    else:
        dealt = dataset.shards(peers, shards, seed).indices
    if len(dealt) != peers:
        raise SettingError(f"shards has {len(dealt)} parts for {peers} peers: give one part for each peer.")
    if any(len(part) and not 0 <= part.min() <= part.max() < len(dataset) for part in dealt):
        raise DataError(
            f"shards names examples that {dataset.name} does not have: its training examples are numbered "
            f"0 to {len(dataset) - 1}."
        )
    sizes = [len(part) for part in dealt]
    if 0 in sizes:
        raise DataError(f"The shard of peer {sizes.index(0)} is empty: give every peer at least one example.")
    if sum(sizes) < peers * batch_size:
        raise DataError(
            f"{dataset.name} has {len(dataset)} training examples, so the shards of {peers} peers hold "
            f"{sum(sizes) / peers:.3g} on average, less than one batch of {batch_size}: take fewer peers, or "
            f"batch_size={max(1, sum(sizes) // peers)}."
        )
    return dealt


def _numbers(part: Any) -> Indices:
    """The examples' numbers that a part of a partition holds."""
    given = np.asarray(part)
    if len(given) and given.dtype.kind not in "iu":
        raise DataError(
            f"shards holds {part[0]!r}, which is no example's number: split the numbers of the training examples, as "
            "lk.split(len(dataset), parts=4) does."
        )
    return given.astype(np.int64)
