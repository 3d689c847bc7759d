"""Torch datasets: data of any size and kind, as a torch Dataset or IterableDataset gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import IterableDataset

from labkit.data.batchwise import Batchwise
from labkit.data.dataset import Dataset
from labkit.data.loaded import Loaded
from labkit.data.streamed import Streamed
from labkit.errors import DataError, SettingError
from labkit.tasks.arguments import whole


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
    whole(workers, "workers", SettingError, least=0)
    if classes is not None:
        whole(classes, "classes", SettingError)
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
