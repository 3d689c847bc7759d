"""Epochs: batches that come to an end, when every example was dealt exactly so often."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.data.batches import Batches, Indices
from labkit.errors import SettingError
from labkit.tasks.arguments import whole


class Epochs(Batches):
    """`epochs` passes over one peer's shard [n] from batch number `start` on, each a new permutation in batches [B].

    An epoch's last batch holds the examples that are left, which may be fewer: `per_epoch` is ⌈n / B⌉. The order
    depends on (seed, peer) alone; `dealt` is how many batches were dealt, the first `start` included.

    Raises SettingError for numbers out of range.

    >>> [sorted(batch.tolist()) for batch in Epochs([7, 8, 9], 3, seed=0, peer=0, epochs=2)]
    [[7, 8, 9], [7, 8, 9]]
    >>> [len(batch) for batch in Epochs([7, 8, 9], 2, seed=0, peer=0, epochs=2)]
    [2, 1, 2, 1]
    """

    def __init__(self, shard: Any, batch_size: int, seed: int, peer: int, epochs: int, start: int = 0) -> None:
        self._shard = np.asarray(shard, dtype=np.int64)
        self._batch = whole(batch_size, "batch_size", SettingError)
        self._passes = whole(epochs, "epochs", SettingError)
        self.dealt = whole(start, "start", SettingError, least=0)
        self.key = (whole(seed, "seed", SettingError, least=0), whole(peer, "peer", SettingError, least=0))
        self.per_epoch = -(-len(self._shard) // self._batch)
        self._number, self._deck = -1, self._shard[:0]  # the epoch whose order is known

    def __next__(self) -> Indices:
        if self.dealt >= self._passes * self.per_epoch:
            raise StopIteration
        epoch, at = divmod(self.dealt, self.per_epoch)
        if epoch != self._number:
            self._number = epoch
            self._deck = np.random.default_rng([*self.key, epoch]).permutation(self._shard)
        self.dealt += 1
        return self._deck[at * self._batch : (at + 1) * self._batch]
