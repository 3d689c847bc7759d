"""Batchwise: datasets on top of torch's own, whose training examples are loaded batch by batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from labkit.data.batches import Batches
from labkit.data.dataset import Dataset
from labkit.data.loading import Fault, Randomness, collated, failed
from labkit.data.tensors import classes_of

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Batchwise(Dataset):
    """Training items of a torch dataset and test items of another, each a pair (input, target)."""

    name: str
    items: Any
    tests: Any = None
    given: int | None = None  # classes
    workers: int = 0  # DataLoader processes of each peer that has a process of its own
    source: Callable[[], Dataset] | None = None
    stackable: ClassVar[bool] = False

    @abstractmethod
    def opened(self, indices: Batches, ahead: bool) -> Iterator[Batch]:
        """The batches at `indices`, one after the other, by the dataset's `workers` where loading `ahead` is wanted.

        Raises DataError for what the torch dataset does wrong.
        """

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is not None:
            return self.source, ()
        return type(self), (self.name, self.items, self.tests, self.given, self.workers)

    # What follows is found out once in a process and does not travel.

    def trial(self) -> Batch:
        return self._trial

    @cached_property
    def _trial(self) -> Batch:
        with Randomness(0):
            return batch(self.first_two(), self.name)

    @abstractmethod
    def first_two(self) -> list[Any] | Fault:
        """Two training items, which may be the same."""

    @cached_property
    def _test(self) -> Batch:
        if self.tests is None:
            x, y = self.trial()
            return x[:0], y[:0]
        with Randomness(0):
            return batch(_all(self.tests, self.name), self.name)

    @cached_property
    def test_x(self) -> Tensor:  # type: ignore[override]  # known when asked for
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


def batch(items: list[Any] | Fault, name: str) -> Batch:
    """The items as one batch; DataError where they are none."""
    made = items if isinstance(items, Fault) else collated(items, name)
    if isinstance(made, Fault):
        raise made.error()
    return made


def _all(tests: Any, name: str) -> list[Any] | Fault:
    try:
        items = list(tests) if isinstance(tests, IterableDataset) else [tests[k] for k in range(len(tests))]
    except Exception as error:  # noqa: BLE001  whatever the user's dataset raises
        return failed(f"The test set of {name}", error, "correct it, or leave test away")
    return items or Fault(f"The test set of {name} is empty: give one with items, or leave test away.")
