"""Shares: what each peer gets of a stream, of which nobody can ask for an item by its number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from labkit.data.batches import Batches, Indices
from labkit.errors import DataError, SettingError
from labkit.tasks.arguments import whole


@dataclass(frozen=True)
class Share:
    """Every `every`-th item of a stream from item number `first` on; its length is known where the stream's is.

    >>> len(Share(first=1, every=2, total=5))
    2
    """

    first: int
    every: int
    total: int | None = None  # items in one pass over the stream

    def __len__(self) -> int:
        if self.total is None:
            raise DataError(
                "A stream of examples does not say how many they are, and the algorithm asks: give its IterableDataset "
                "a __len__."
            )
        return len(range(self.first, self.total, self.every))


class Turns(Batches):
    """The batches of a share, taken as they come, pass after pass: it deals their numbers, as it can only count.

    The order of the items is the stream's own; the incomplete last batch of a pass is left out. With `epochs` it ends
    after so many passes, the last batches included.

    Raises SettingError for numbers out of range.
    """

    def __init__(
        self, share: Share, batch_size: int, seed: int, peer: int, epochs: int | None = None, start: int = 0
    ) -> None:
        self.share = share
        self.batch_size = whole(batch_size, "batch_size", SettingError)
        self.epochs = None if epochs is None else whole(epochs, "epochs", SettingError)
        self.key = (whole(seed, "seed", SettingError, least=0), whole(peer, "peer", SettingError, least=0))
        self.dealt = whole(start, "start", SettingError, least=0)

    @cached_property
    def per_epoch(self) -> int:  # type: ignore[override]  # asked for, a stream of unknown length says what to do
        n, b = len(self.share), self.batch_size
        return max(1, n // b) if self.epochs is None else -(-n // b)

    @property
    def size(self) -> int | None:
        """How many batches there are before the end; None where there is none."""
        return None if self.epochs is None else self.epochs * self.per_epoch

    def __next__(self) -> Indices:
        if self.size is not None and self.dealt >= self.size:
            raise StopIteration
        self.dealt += 1
        return np.array([self.dealt - 1])
