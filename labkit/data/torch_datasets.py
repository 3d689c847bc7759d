"""Torch datasets: data of any size and kind, as a torch Dataset or IterableDataset gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from labkit.checks import whole
from labkit.data.batches import Batches, Indices
from labkit.data.batchwise import Batch, Batchwise
from labkit.data.dataset import Dataset
from labkit.data.loading import Fault, Randomness, collated, failed, in_process, numbered
from labkit.data.loading import ahead as loaded_ahead
from labkit.data.streamed import Streamed
from labkit.errors import DataError


def from_torch(
    train: Any,
    test: Any = None,
    *,
    name: str | None = None,
    classes: int | None = None,
    workers: int = 0,
    source: Callable[[], Dataset] | None = None,
) -> Batchwise:
    """A torch Dataset of pairs (input, target), map-style or iterable, loaded batch by batch where peers train.

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
    whole(workers, "workers", least=0)
    if classes is not None:
        whole(classes, "classes")
    for given, which in ((train, "train"), (test, "test")):
        if given is not None or which == "train":
            _require_dataset(given, which)
    if isinstance(train, IterableDataset):
        return Streamed(called, train, test, classes, workers, source)
    if not len(train):
        raise DataError(f"{called} has no items: give a dataset with at least one.")
    return Loaded(called, train, test, classes, workers, source)


def _require_dataset(given: Any, which: str) -> None:
    if isinstance(given, IterableDataset) and not isinstance(given, type):
        return
    if isinstance(given, type) or not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        what = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
        raise DataError(
            f"{which} is {what}, and no torch dataset: give an object with __getitem__ and __len__, or an "
            "IterableDataset."
        )


# -- Loaded: a torch dataset of items that have numbers, each loaded when a batch wants it.


@dataclass(frozen=True, eq=False, repr=False)
class Loaded(Batchwise):
    """A map-style torch dataset, of which peers get shards of item numbers."""

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

    def opened(self, indices: Batches, ahead: bool) -> Iterator[Batch]:
        source = _Batches(self, indices.key)
        if ahead and self.workers:
            return loaded_ahead(source, indices, self.workers, self.name)
        return in_process(map(source.__getitem__, numbered(indices)))

    def first_two(self) -> list[Any] | Fault:
        whole = self.targets is not None and self.targets.dim() == 1 and not self.targets.is_floating_point()
        one = _item(self, int(self.targets.argmax()) if whole and self.targets is not None else 0)
        return one if isinstance(one, Fault) else [one, one]


class _Batches(TorchDataset[Any]):
    """Whole batches by (batch number, item numbers); what is random in them follows from `key` and the batch number."""

    def __init__(self, dataset: Loaded, key: tuple[int, int]) -> None:
        self._dataset, self._key, self._random = dataset, key, Randomness()

    def __getitem__(self, request: tuple[int, Indices]) -> Batch | Fault:
        number, at = request
        items = []
        with self._random.anew(*self._key, number):
            for k in at.tolist():
                item = _item(self._dataset, k)
                if isinstance(item, Fault):
                    return item
                items.append(item)
        return collated(items, self._dataset.name)


def _item(dataset: Loaded, k: int) -> Any | Fault:
    try:
        return dataset.items[k]
    except Exception as error:  # noqa: BLE001  whatever the user's dataset raises
        return failed(f"Item {k} of {dataset.name}", error, "correct the dataset's __getitem__")
