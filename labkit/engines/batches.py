"""Streams: the batches of one peer, or of a stack of peers at once, as tensors on their device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.algorithms.base import Batch
from labkit.data import Dataset, Tensors
from labkit.data.batches import Batches
from labkit.data.torch_datasets import TorchDataset


class Examples:
    """The training examples of a dataset on one device, from which every stream there takes its batches.

    A peer that is `alone` in its process may have others that load batches ahead for it.
    """

    def __init__(self, dataset: Dataset, device: torch.device, alone: bool = False) -> None:
        self._dataset, self._device, self._alone = dataset, device, alone
        if isinstance(dataset, Tensors):
            self._x, self._y = dataset.x.to(device), dataset.y.to(device)

    def __getitem__(self, indices: NDArray[np.int64]) -> Batch:
        at = torch.from_numpy(np.ascontiguousarray(indices).reshape(-1)).to(self._device)
        x, y = self._x.index_select(0, at), self._y.index_select(0, at)  # faster than x[at] in several dimensions
        return x.reshape(*indices.shape, *x.shape[1:]), y.reshape(*indices.shape, *y.shape[1:])

    def batches(self, indices: Batches) -> Iterator[Batch]:
        """One peer's batches, which go on from where an earlier stream of the same indices stopped."""
        if not isinstance(self._dataset, TorchDataset):
            return map(self.__getitem__, indices)
        if indices.loading is None:
            indices.loading = self._dataset.opened(indices, ahead=self._alone)
        return map(self._moved, indices.loading)

    def _moved(self, batch: Batch) -> Batch:
        inputs, targets = batch
        return inputs.to(self._device), targets.to(self._device)


class Stream(Iterator[Batch]):
    """One peer's batches: inputs [B, …] and targets [B, …]."""

    def __init__(self, examples: Examples, indices: Batches) -> None:
        self.indices = [indices]
        self._batches = examples.batches(indices)
        self.ahead: list[NDArray[np.int64]] = []  # it never draws before it deals

    @property
    def per_epoch(self) -> int:
        """How many batches one epoch has."""
        return self.indices[0].per_epoch

    def __next__(self) -> Batch:
        return next(self._batches)


class StackedStream(Iterator[Batch]):
    """The endless batches of K peers at once: inputs [K, B, …] and targets [K, B, …]."""

    def __init__(self, examples: Examples, indices: Sequence[Batches]) -> None:
        self._examples, self.indices = examples, indices
        self.per_epoch = np.array([own.per_epoch for own in indices])  # [K]
        self._last: NDArray[np.int64] | list[NDArray[np.int64]] = []
        self.ahead: list[NDArray[np.int64]] = []  # drawn but not dealt yet, [K, B] each, the next one last

    def __next__(self) -> Batch:
        if not self.ahead:
            self.deal_ahead(1)
        self._last = dealt = self.ahead.pop()
        return self._examples[dealt]

    def deal_ahead(self, count: int) -> None:
        """Draw the next `count` batches of every peer now: together they cost less."""
        missing = count - len(self.ahead)
        if missing > 0:
            each = [own.take(missing) for own in self.indices]
            if isinstance(each[0], np.ndarray):
                dealt = [*np.stack(each, axis=1)]  # [missing, K, B]
            else:  # the last batches of their passes are smaller, of all at the same step
                dealt = [np.stack(batches) for batches in zip(*each, strict=True)]
            self.ahead = [*dealt[::-1], *self.ahead]

    def deal(self, active: NDArray[np.bool_]) -> Batch:
        """New batches to the active peers [K]; the others, who are done, get their last one once more."""
        if not len(self._last):  # everybody is active in a round's first step
            return next(self)
        self._last = [next(own) if go else old for own, go, old in zip(self.indices, active, self._last, strict=True)]
        return self._examples[np.stack(self._last)]
