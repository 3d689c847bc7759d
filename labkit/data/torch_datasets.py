"""Torch datasets: data of any size and kind, loaded batch by batch as a torch Dataset or IterableDataset gives them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, islice
from time import monotonic
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from torch.utils.data._utils import worker as torchs

from labkit.checks import number, whole
from labkit.data.batches import Batches, Indices, StreamBatches, StreamShard
from labkit.data.collation import Batch, Collation, failed
from labkit.data.conversion import classes_of
from labkit.data.dataset import Dataset
from labkit.data.loading import Reader, prefetched
from labkit.data.randomness import Randomness
from labkit.data.shards import Replicated
from labkit.errors import DataError, SettingError
from labkit.text import a

COUNTING = 60.0  # seconds that going through a stream to count its items may take


def from_torch(
    train: Any,
    test: Any = None,
    *,
    name: str | None = None,
    classes: int | None = None,
    workers: int = 0,
    source: Callable[[], Dataset] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    pad: float | Mapping[str, float] | None = None,
) -> TorchDataset:
    """A torch Dataset, map-style or iterable, loaded batch by batch where peers train.

    Items are pairs (input, target), several inputs and a target, or dicts with "labels" (or "label", "targets"), as
    tokenisers make them. Several inputs are given to the model as model(**inputs) where they have names, and as
    model(*inputs) where they have none. `collate_fn` makes a batch of a list of items, as torch's DataLoader lets it,
    in one of these forms. Or sequences of different lengths are padded to the longest of each batch: `pad` is what
    fills up inputs, or of each by name; masks are filled with 0, and integer targets with −100, which losses ignore.

    `test` is one too, loaded once as a whole. `workers` torch DataLoader processes load ahead for each peer that has a
    process of its own, as on a cluster; peers that share one load in it. Neither changes what peers see, random
    transforms included: these follow from the seed. `source` makes the same dataset on a worker, instead of sending it.

    Items of an IterableDataset go in turn to the peers, every n-th to each of n; it begins anew when it ends, and is
    gone through once to be counted where its length matters (`epochs=`, FedAvg) and it has no `__len__`. Each peer and
    process goes through all of its items, so these should cost little.

    Raises DataError for what is no torch dataset or empty, SettingError for numbers out of range.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from_torch(TensorDataset(torch.rand(6, 3), torch.arange(6) % 2), name="mine", classes=2)
    Dataset mine: 6 training and 0 test examples of shape (3,), 2 classes
    """
    called = name or type(train).__name__
    if collate_fn is not None and (pad is not None or not callable(collate_fn)):
        raise SettingError("collate_fn is to be a function that makes whole batches: give it, or pad=…, not both.")
    for value in pad.values() if isinstance(pad, Mapping) else () if pad is None else (pad,):
        number(value, "pad", least=-math.inf)
    collation = Collation(collate_fn, pad)
    whole(workers, "workers", least=0)
    if classes is not None:
        whole(classes, "classes")
    _require_dataset(train, "train")
    if test is not None:
        _require_dataset(test, "test")
    if isinstance(train, IterableDataset):
        return IterableStyle(called, train, test, classes, workers, source, collation)
    if not len(train):
        raise DataError(f"{called} has no items: give a dataset with at least one.")
    return MapStyle(called, train, test, classes, workers, source, collation)


def _require_dataset(given: Any, which: str) -> None:
    if isinstance(given, IterableDataset) and not isinstance(given, type):
        return
    if isinstance(given, type) or not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        what = f"the class {given.__name__}" if isinstance(given, type) else a(type(given).__name__)
        raise DataError(
            f"{which} is {what}, and no torch dataset: give an object with __getitem__ and __len__, or an "
            "IterableDataset."
        )


@dataclass(frozen=True, eq=False, repr=False)
class TorchDataset(Dataset):
    """Training items of a torch dataset and test items of another."""

    name: str
    items: Any
    tests: Any = None
    given: int | None = None  # classes
    workers: int = 0  # DataLoader processes of each peer that has a process of its own
    source: Callable[[], Dataset] | None = None
    collation: Collation = Collation()  # noqa: RUF009  frozen
    stackable: ClassVar[bool] = False
    reader: ClassVar[type[Reader]]

    def opened(self, indices: Batches, ahead: bool) -> Iterator[Batch]:
        """The batches that `indices` deals, one after the other, by the dataset's `workers` if `ahead`.

        Raises DataError for what the torch dataset does wrong.
        """
        if ahead and self.workers:
            return prefetched(self.reader, self, indices)
        return iter(self.reader(self, indices))

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is not None:
            return self.source, ()
        return type(self), (self.name, self.items, self.tests, self.given, self.workers, None, self.collation)

    # What follows is found out once in a process and does not travel.

    def trial(self) -> Batch:
        made: Batch = self._trial
        return made

    @cached_property
    def _trial(self) -> Batch:
        with Randomness(0):
            return self.collation(self.first_two(), self.name)

    @abstractmethod
    def first_two(self) -> list[Any]:
        """Two training items, which may be the same."""

    @cached_property
    def _test(self) -> Batch:
        if self.tests is None:
            x, y = self.trial()
            return x[:0], y[:0]
        with Randomness(0):
            return self.collation(self._all_tests(), self.name)

    def _all_tests(self) -> list[Any]:
        tests = self.tests
        try:
            items = list(tests) if isinstance(tests, IterableDataset) else [tests[k] for k in range(len(tests))]
        except Exception as error:  # noqa: BLE001  whatever the dataset raises
            raise failed(f"The test set of {self.name}", error, "correct it, or leave test away") from None
        if not items:
            raise DataError(f"The test set of {self.name} is empty: give one with items, or leave test away.")
        return items

    @property
    def tested(self) -> bool:
        return self.tests is not None

    @cached_property
    def test_x(self) -> Any:  # type: ignore[override]  # known when asked for
        return self._test[0]

    @cached_property
    def test_y(self) -> Tensor:  # type: ignore[override]  # known when asked for
        return self._test[1]

    @cached_property
    def classes(self) -> int:  # type: ignore[override]  # known when asked for
        """As given, or as many as torchvision's `classes` or the targets that are known tell of."""
        if self.given is not None:
            return self.given
        names = getattr(self.items, "classes", None)
        if names is not None:
            return len(names)
        known = [y for y in (self.targets, self.test_y) if y is not None and y.dim() == 1 and not y.is_floating_point()]
        return max(map(classes_of, known), default=0)

    @property
    def targets(self) -> Tensor | None:
        """The training targets, where the torch dataset has them as an attribute, as torchvision's do."""
        given = getattr(self.items, "targets", None)
        return None if given is None else torch.as_tensor(given)


# Map-style: items that have numbers, each loaded when a batch wants it.


class _MapReader(Reader):
    """What is random in a batch follows from the seed, the peer and the number of the batch."""

    def requests(self) -> Iterator[Callable[[], Batch]]:
        random = Randomness()
        for at in self.indices:
            yield partial(self._batch, random.anew(*self.indices.key, self.indices.dealt - 1), at)

    def _batch(self, random: Randomness, at: Indices) -> Batch:
        with random:
            items = [self.source.item(k) for k in at.tolist()]
        made: Batch = self.source.collation(items, self.source.name)
        return made


@dataclass(frozen=True, eq=False, repr=False)
class MapStyle(TorchDataset):
    """A map-style torch dataset, of which peers get shards of item numbers."""

    reader: ClassVar[type[Reader]] = _MapReader

    def __len__(self) -> int:
        return len(self.items)

    @property
    def y(self) -> Tensor:  # type: ignore[override]
        """The targets of all items, without loading these; DataError where the torch dataset does not tell."""
        targets = self.targets
        if targets is None:
            raise DataError(
                f"{self.name} does not tell its class numbers without loading every item: give the torch dataset an "
                "attribute `targets`, as torchvision's have, or deal with IID() or Quantity(alpha)."
            )
        return targets

    def item(self, k: int) -> Any:
        """Item number k; DataError where the torch dataset fails."""
        try:
            return self.items[k]
        except Exception as error:  # noqa: BLE001  whatever the dataset raises
            raise failed(f"Item {k} of {self.name}", error, "correct the dataset's __getitem__") from None

    def examples(self, numbers: Indices) -> Batch:
        with Randomness(0):
            return self.collation([self.item(k) for k in numbers.tolist()], self.name)

    def first_two(self) -> list[Any]:
        y = self.targets
        largest = 0 if y is None or y.dim() != 1 or y.is_floating_point() else int(y.argmax())
        return [self.item(largest), self.item(len(self) - 1)]


# Iterable-style: one item after the other, of which each of n peers takes every n-th.


class _StreamReader(Reader):
    """What is random in a pass follows from the seed and its number, so all peers and processes see one order."""

    def __init__(self, source: IterableStyle, indices: Batches) -> None:
        assert isinstance(indices, StreamBatches)
        super().__init__(source, indices)
        self.indices: StreamBatches = indices

    def requests(self) -> Iterator[Callable[[], Batch]]:
        # A stream that divides itself among DataLoader processes must not: its items are divided among the peers, and
        # their batches among the processes.
        torchs._worker_info = None
        indices, number, start = self.indices, 0, self.indices.dealt
        for turn in count() if indices.epochs is None else range(indices.epochs):
            before = number
            for items in self._batched(turn):
                if number >= start:
                    next(indices)
                    yield partial(self.source.collation, items, self.source.name)
                number += 1
            self._require_enough(number - before, turn)

    def _batched(self, turn: int) -> Iterator[list[Any]]:
        """The items of pass number `turn` in batches; the incomplete last one only where epochs are counted."""
        shard, size, epochs = self.indices.shard, self.indices.batch_size, self.indices.epochs
        own = islice(self.source.in_turn(), shard.first, None, shard.every)
        if epochs is not None:
            own = islice(own, len(shard))
        random = Randomness(self.indices.key[0], turn)
        while True:
            with random:
                items = list(islice(own, size))
            if len(items) == size or (items and epochs is not None):
                yield items
            if len(items) < size:
                return

    def _require_enough(self, batches: int, turn: int) -> None:
        """Raise DataError where pass number `turn` had too few batches."""
        name, shard, size = self.source.name, self.indices.shard, self.indices.batch_size
        if self.indices.epochs is not None:
            if batches * size < len(shard):
                raise DataError(
                    f"{name} gave fewer items in pass {turn + 1} than the {shard.total} that it has: let its __iter__ "
                    "begin anew each time, and its __len__ be true."
                )
        elif not batches and turn:
            raise DataError(f"{name} gave no items in pass {turn + 1}: let its __iter__ begin anew each time.")
        elif not batches:
            raise DataError(
                f"{name} ended before each of {shard.every} peers had a batch of {size}: take fewer peers, a smaller "
                "batch_size, or a stream of more items."
            )


@dataclass(frozen=True, eq=False, repr=False)
class IterableStyle(TorchDataset):
    """An IterableDataset; when it ends it begins anew, in an order of its own that every peer sees alike."""

    reader: ClassVar[type[Reader]] = _StreamReader

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
            for _ in self.in_turn():
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

    def shares(self, peers: int, how: Any, counted: bool) -> Sequence[StreamShard]:
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
            return [StreamShard(0, 1, total)] * peers
        return [StreamShard(k, peers, total) for k in range(peers)]

    def examples(self, numbers: Indices) -> NoReturn:
        self._refuse("examples by number")

    def shards(self, peers: int, how: Any = None, seed: int = 0) -> NoReturn:
        """A stream's items have no numbers that could be dealt."""
        self._refuse("shards of numbers")

    def in_turn(self) -> Iterator[Any]:
        """The items of one pass; DataError where the torch dataset fails."""
        number = -1
        try:
            for number, item in enumerate(self.items):  # noqa: B007  the number is wanted after an error
                yield item
        except Exception as error:  # noqa: BLE001  whatever the dataset raises
            raise failed(f"{self.name} after {number + 1} items", error, "correct the dataset's __iter__") from None

    def first_two(self) -> list[Any]:
        items = list(islice(self.in_turn(), 2))
        if not items:
            raise DataError(f"{self.name} is empty: let its __iter__ give at least one batch for each peer.")
        return [items[0], items[-1]]

    @property
    def _size(self) -> str:
        return "a stream of"

    def _refuse(self, what: str) -> NoReturn:
        raise SettingError(
            f"{self.name} is a stream, which cannot give {what}: leave shards away (each of n peers takes every n-th "
            "item), or make it a map-style dataset with __getitem__ and __len__."
        )
