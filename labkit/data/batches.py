"""Batches: which examples a peer sees at each step, decided by the seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from labkit.checks import whole
from labkit.errors import DataError

Indices = npt.NDArray[np.int64]

_SMALL, _DECK = 128, 1024  # of shards smaller than that, so many examples are shuffled at once; part of the order


def batches(shard: Any, batch_size: int, seed: int, peer: int, start: int = 0) -> Endless:
    """Endless batches [B] of one peer's shard [n], from batch number `start` on: each epoch is a new permutation.

    An epoch's incomplete last batch is dropped; a shard smaller than a batch goes round and round without a gap, so
    that its examples are seen equally often. The order depends on (seed, peer) and on nothing else, so every engine
    deals the same batches, and beginning at `start` costs no more than shuffling one deck.

    Raises DataError for an empty shard, SettingError for numbers out of range.

    >>> dealt = batches([10, 11, 12, 13], 2, seed=0, peer=0)
    >>> sorted([*next(dealt), *next(dealt)])
    [np.int64(10), np.int64(11), np.int64(12), np.int64(13)]
    >>> dealt.epoch, dealt.per_epoch
    (1, 2)
    >>> sorted(next(batches([7, 8], 6, seed=0, peer=0)).tolist())
    [7, 7, 7, 8, 8, 8]
    """
    return Endless(shard, batch_size, seed, peer, start)


class Batches(Iterator[Indices]):
    """One peer's batches [B], whose order follows from `key` = (seed, peer).

    `dealt` is how many were dealt, those before the stream began included; `loading` is the iterator that loads their
    examples one batch after the other, where these do not lie in memory. Raises SettingError for numbers out of range.
    """

    per_epoch: int  # how many batches one epoch has
    loading: Iterator[tuple[Tensor, Tensor]] | None = None

    def __init__(self, batch_size: int, seed: int, peer: int, start: int) -> None:
        self.batch_size = whole(batch_size, "batch_size")
        self.key = whole(seed, "seed", least=0), whole(peer, "peer", least=0)
        self.dealt = whole(start, "start", least=0)

    @property
    def epoch(self) -> int:
        """How many epochs are finished, each of `per_epoch` batches."""
        return self.dealt // self.per_epoch

    def take(self, count: int) -> Sequence[Indices] | Indices:
        """The next `count` batches at once: [count, B], or a list where they may be of different sizes."""
        return [next(self) for _ in range(count)]


class Endless(Batches):
    """Batches dealt from one shuffled deck after another, n // B in an epoch, or one where n < B."""

    def __init__(self, shard: Any, batch_size: int, seed: int, peer: int, start: int) -> None:
        self._shard = np.asarray(shard, dtype=np.int64)
        n = len(self._shard)
        if not n:
            raise DataError(
                f"Peer {peer} has no training examples: take fewer peers, or a split that leaves some to it."
            )
        super().__init__(batch_size, seed, peer, start)
        size = self.batch_size
        self.per_epoch = max(1, n // size)
        # Epochs in a deck: one, or of a small shard many, since a generator costs as much as shuffling hundreds; a
        # deck is never smaller than a batch, so a batch comes from two decks at most.
        self._epochs = 1 if n >= max(size, _SMALL) else -(-max(size, _DECK) // n)
        self._kept = n if n < size else self.per_epoch * size  # of each epoch
        self._size = self._kept * self._epochs
        self._number, self._at = divmod(self.dealt * size, self._size)
        self._deck = self._shuffled()

    def __next__(self) -> Indices:
        at = self._at
        end = at + self.batch_size
        self.dealt += 1
        if end <= self._size:
            self._at = end
            return self._deck[at:end]
        rest = self._deck[at:]  # empty unless the shard is smaller than a batch
        self._number += 1
        self._deck = self._shuffled()
        self._at = end - self._size
        return np.concatenate((rest, self._deck[: self._at]))

    def take(self, count: int) -> Indices:
        at, end = self._at, self._at + count * self.batch_size
        if end <= self._size:  # all from this deck, as nearly always
            self._at, self.dealt = end, self.dealt + count
            return self._deck[at:end].reshape(count, self.batch_size)
        dealt = np.empty((count, self.batch_size), dtype=np.int64)
        done = 0
        while done < count:
            whole_ones = min(count - done, (self._size - self._at) // self.batch_size)  # in this deck
            end = self._at + whole_ones * self.batch_size
            dealt[done : done + whole_ones] = self._deck[self._at : end].reshape(-1, self.batch_size)
            self._at, self.dealt, done = end, self.dealt + whole_ones, done + whole_ones
            if done < count:
                dealt[done] = next(self)
                done += 1
        return dealt

    def _shuffled(self) -> Indices:
        random = np.random.Generator(np.random.PCG64([*self.key, self._number]))  # sooner made than by default_rng
        if self._epochs == 1:
            return random.permutation(self._shard)[: self._size]
        epochs = np.repeat(self._shard[np.newaxis], self._epochs, axis=0)
        return random.permuted(epochs, axis=1, out=epochs)[:, : self._kept].reshape(-1)


class Epochs(Batches):
    """`epochs` passes over one peer's shard [n] from batch number `start` on, each a new permutation in batches [B].

    An epoch's last batch holds the examples that are left, which may be fewer: `per_epoch` is ⌈n / B⌉. With None the
    passes never end.

    >>> [sorted(batch.tolist()) for batch in Epochs([7, 8, 9], 3, seed=0, peer=0, epochs=2)]
    [[7, 8, 9], [7, 8, 9]]
    >>> [len(batch) for batch in Epochs([7, 8, 9], 2, seed=0, peer=0, epochs=2)]
    [2, 1, 2, 1]
    """

    def __init__(self, shard: Any, batch_size: int, seed: int, peer: int, epochs: int | None, start: int = 0) -> None:
        super().__init__(batch_size, seed, peer, start)
        self._shard = np.asarray(shard, dtype=np.int64)
        self._passes = None if epochs is None else whole(epochs, "epochs")
        self.per_epoch = -(-len(self._shard) // self.batch_size)
        self._number, self._deck = -1, self._shard[:0]  # the epoch whose order is known

    def __next__(self) -> Indices:
        if self._passes is not None and self.dealt >= self._passes * self.per_epoch:
            raise StopIteration
        epoch, at = divmod(self.dealt, self.per_epoch)
        if epoch != self._number:
            self._number = epoch
            self._deck = np.random.default_rng([*self.key, epoch]).permutation(self._shard)
        self.dealt += 1
        return self._deck[at * self.batch_size : (at + 1) * self.batch_size]


@dataclass(frozen=True)
class StreamShard:
    """Every `every`-th item of a stream from item number `first` on, of `total` in one pass where that is known.

    >>> len(StreamShard(first=1, every=2, total=5))
    2
    """

    first: int
    every: int
    total: int | None = None

    def __len__(self) -> int:
        if self.total is None:
            raise DataError(
                "A stream of examples does not say how many they are, and the algorithm asks: give its IterableDataset "
                "a __len__."
            )
        return len(range(self.first, self.total, self.every))


class StreamBatches(Batches):
    """The batches of a stream's shard, pass after pass: it deals their numbers, as nobody can ask for an item by one.

    The order of the items is the stream's own; the incomplete last batch of a pass is left out. With `epochs` it ends
    after so many passes, the last batches included.
    """

    def __init__(
        self, shard: StreamShard, batch_size: int, seed: int, peer: int, epochs: int | None = None, start: int = 0
    ) -> None:
        super().__init__(batch_size, seed, peer, start)
        self.shard = shard
        self.epochs = None if epochs is None else whole(epochs, "epochs")

    @cached_property
    def per_epoch(self) -> int:  # type: ignore[override]  # asked for, a stream of unknown length says what to do
        n = len(self.shard)
        return max(1, n // self.batch_size) if self.epochs is None else -(-n // self.batch_size)

    def __next__(self) -> Indices:
        if self.epochs is not None and self.dealt >= self.epochs * self.per_epoch:
            raise StopIteration
        self.dealt += 1
        return np.array([self.dealt - 1])
