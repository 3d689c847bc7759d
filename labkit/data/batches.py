"""Batches: which examples a peer sees at each step, decided by the seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def batches(shard: Any, batch_size: int, seed: int, peer: int) -> Iterator[Indices]:
    """Endless batches [B] of one peer's shard: each epoch is a new permutation, its incomplete last batch dropped.

    The order depends on (seed, peer, epoch) and on nothing else, so every engine deals the same batches.

    >>> dealt = batches([10, 11, 12, 13], 2, seed=0, peer=0)
    >>> sorted([*next(dealt), *next(dealt)])
    [np.int64(10), np.int64(11), np.int64(12), np.int64(13)]
    """
    shard = np.asarray(shard, dtype=np.int64)
    epoch = 0
    while True:
        order = np.random.default_rng([seed, peer, epoch]).permutation(shard)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
        epoch += 1
