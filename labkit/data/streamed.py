"""Streamed: a torch dataset that gives one item after the other, of which each of n peers takes every n-th."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from time import monotonic
from typing import Any, NoReturn

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils import worker as torchs

from labkit.checks import whole
from labkit.data.batches import Batches, Indices
from labkit.data.batchwise import Batch, Batchwise
from labkit.data.loading import Fault, Randomness, collated, failed, in_process
from labkit.data.loading import ahead as loaded_ahead
from labkit.data.shards import Replicated
from labkit.errors import DataError, SettingError

COUNTING = 60.0  # seconds that going through a stream to count its items may take


@dataclass(frozen=True, eq=False, repr=False)
class Streamed(Batchwise):
    """An IterableDataset; when it ends it begins anew, in an order of its own that every peer sees alike."""

    def __len__(self) -> int:
        return self._length

    @property
    def _told(self) -> int | None:
        """How many items the IterableDataset says that it has."""
        try:
            return len(self.items)
        except (TypeError, NotImplementedError):
            return None

    @cached_property
    def _length(self) -> int:
        """As it says, or as many as one pass over it has."""
        if self._told is not None:
            return self._told
        limit, n = monotonic() + COUNTING, 0
        with Randomness(0):
            for item in _guarded(self):
                if isinstance(item, Fault):
                    raise item.error()
                n += 1
                if monotonic() > limit:
                    raise DataError(
                        f"{self.name} does not say how many items it has, and {COUNTING:g} s did not do to count them: "
                        "give it a __len__, or train for so many rounds=… instead of epochs=…."
                    )
        return n

    @property
    def y(self) -> Tensor:  # type: ignore[override]
        self._refuse("a class of each example by number")

    def shares(self, peers: int, how: Any, counted: bool) -> Sequence[Share]:
        """Every n-th item for each of n peers, or all of them for everybody if `how` is Replicated().

        With `counted` it is known how many those are. Raises SettingError for another way to deal, and DataError for
        fewer items than peers.
        """
        if how is not None and not isinstance(how, Replicated):
            self._refuse(f"shards={how!r}")
        total = len(self) if counted else self._told
        if total is not None and total < peers:
            raise DataError(f"{self.name} has {total} items, too few for {peers} peers: take at most {max(1, total)}.")
        if how is not None:
            return [Share(0, 1, total)] * peers
        return [Share(k, peers, total) for k in range(peers)]

    def shards(self, peers: int, how: Any = None, seed: int = 0) -> NoReturn:
        """A stream's items have no numbers that could be dealt."""
        self._refuse("shards of numbers")

    def opened(self, indices: Batches, ahead: bool) -> Iterator[Batch]:
        assert isinstance(indices, Turns)
        source = _Passes(self, indices)
        if ahead and self.workers:
            return loaded_ahead(source, indices, self.workers, self.name)
        return in_process(_counted(source, indices))

    def first_two(self) -> list[Any] | Fault:
        items = list(islice(_guarded(self), 2))
        fault = next((it for it in items if isinstance(it, Fault)), None)
        if not items:
            return Fault(f"{self.name} is empty: let its __iter__ give at least one batch for each peer.")
        return fault or [items[0], items[-1]]

    @property
    def _size(self) -> str:
        return "a stream of"

    def _refuse(self, what: str) -> NoReturn:
        raise SettingError(
            f"{self.name} is a stream, which cannot give {what}: leave shards away (each of n peers takes every n-th "
            "item), or make it a map-style dataset with __getitem__ and __len__."
        )


def _counted(batches: Any, indices: Batches) -> Iterator[Batch | Fault]:
    for batch in batches:
        next(indices)
        yield batch


class _Passes(IterableDataset[Any]):
    """The batches of a peer's turns; of W DataLoader processes each goes through all items and gives every W-th batch.

    What is random in a pass follows from the seed and the number of the pass, so all peers and processes see one order.
    """

    def __init__(self, dataset: Streamed, turns: Turns) -> None:
        self._dataset, self._share, self._size = dataset, turns.share, turns.batch_size
        self._epochs, self._start, self._seed = turns.epochs, turns.dealt, turns.key[0]

    def __iter__(self) -> Iterator[Batch | Fault]:
        mine = _mine()
        number = 0
        for at in count() if self._epochs is None else range(self._epochs):
            before = number
            for items in self._batched(at):
                if isinstance(items, Fault):
                    yield items
                    return
                if number >= self._start and mine(number - self._start):
                    yield collated(items, self._dataset.name)
                number += 1
            if fault := self._short(number - before, at):
                yield fault
                return

    def _batched(self, at: int) -> Iterator[list[Any] | Fault]:
        """The items of pass number `at` in batches; the incomplete last one only where epochs are counted."""
        own = islice(_guarded(self._dataset), self._share.first, None, self._share.every)
        if self._epochs is not None:
            own = islice(own, len(self._share))
        random = Randomness(self._seed, at)
        while True:
            with random:
                items = list(islice(own, self._size))
            fault = next((item for item in items if isinstance(item, Fault)), None)
            if fault is not None:
                yield fault
                return
            if len(items) < self._size:
                if items and self._epochs is not None:
                    yield items
                return
            yield items

    def _short(self, batches: int, at: int) -> Fault | None:
        """What is wrong if pass number `at` had only so many batches."""
        name, peers = self._dataset.name, self._share.every
        if self._epochs is not None:
            if batches * self._size >= len(self._share):
                return None
            return Fault(
                f"{name} gave fewer items in pass {at + 1} than the {self._share.total} that it has: let its __iter__ "
                "begin anew each time, and its __len__ be true."
            )
        if batches:
            return None
        if at:
            return Fault(f"{name} gave no items in pass {at + 1}: let its __iter__ begin anew each time.")
        return Fault(
            f"{name} ended before each of {peers} peers had a batch of {self._size}: take fewer peers, a smaller "
            "batch_size, or a stream of more items."
        )


def _guarded(dataset: Streamed) -> Iterator[Any]:
    """The items of one pass; a Fault where the user's code raises, as the last one."""
    number = -1
    try:
        for number, item in enumerate(dataset.items):  # noqa: B007  the number is wanted after an error
            yield item
    except Exception as error:  # noqa: BLE001  whatever the user's dataset raises
        fault = failed(f"{dataset.name} after {number + 1} items", error, "correct the dataset's __iter__")
        while True:  # also for a peer who takes only every n-th item
            yield fault


def _mine() -> Callable[[int], bool]:
    """Which batches this process gives: all, or as one of W DataLoader processes every W-th."""
    info = get_worker_info()
    if info is None:
        return lambda number: True
    # A stream that divides itself among DataLoader processes must not: its items were divided among peers and batches.
    torchs._worker_info = None
    return lambda number: number % info.num_workers == info.id


# -- Shares: what each peer gets of a stream, of which nobody can ask for an item by its number.


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
        self.batch_size = whole(batch_size, "batch_size")
        self.epochs = None if epochs is None else whole(epochs, "epochs")
        self.key = (whole(seed, "seed", least=0), whole(peer, "peer", least=0))
        self.dealt = whole(start, "start", least=0)

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
