"""A dataset: what peers are trained on and tested with, dealt to them evenly unless another way is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labkit.checks import whole
from labkit.errors import DataError
from labkit.tasks.split import Partition, split
from labkit.text import listed


class Dataset(ABC):
    """Training examples (x, y) and test examples test_x [M, …], test_y [M, …]; to workers it travels by its `source`.

    `labkit.data.tensors.Tensors` holds its examples; those of torch's own datasets are loaded batch by batch.
    """

    name: str
    y: Tensor  # the training examples' targets [N, …]
    test_x: Tensor
    test_y: Tensor
    classes: int  # 0 where the targets are real numbers
    names: tuple[str, ...] = ()  # of the classes, where they have some
    source: Callable[[], Dataset] | None  # how a worker makes the same dataset for itself
    stackable: ClassVar[bool]  # whether many examples can be had at once, as peers computed together need it

    @abstractmethod
    def __len__(self) -> int:
        """How many training examples there are."""

    @abstractmethod
    def trial(self) -> tuple[Tensor, Tensor]:
        """Two training examples [2, …], to try a model on; the largest class number is among them if it is known."""

    @abstractmethod
    def examples(self, numbers: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The training examples of these numbers."""

    @property
    def tested(self) -> bool:
        """Whether there are test examples."""
        return len(self.test_y) > 0

    @property
    def shape(self) -> torch.Size:
        """The shape of one input."""
        return self.trial()[0].shape[1:]

    def shards(self, peers: int, how: Sharding | None = None, seed: int = 0) -> Partition:
        """One shard of training-example indices for each peer; IID unless `how` says otherwise.

        Raises SettingError for `peers` < 1, and DataError when there are too few examples for them.
        """
        return (how or IID()).deal(self, whole(peers, "peers"), seed)

    def __repr__(self) -> str:
        classes = f", {self.classes} classes" if self.classes else ""
        if self.names:
            classes += f" ({listed(self.names[:12], len(self.names))})"
        return (
            f"Dataset {self.name}: {self._size} training and {len(self.test_x)} test examples "
            f"of shape {tuple(self.shape)}{classes}"
        )

    @property
    def _size(self) -> str:
        return str(len(self))


class Sharding(Protocol):
    """A way to deal a dataset's training examples to peers."""

    @property
    def common_order(self) -> bool:
        """Whether all peers see the same batches in the same order."""

    def deal(self, dataset: Dataset, peers: int, seed: int) -> Partition:
        """One shard of the training examples' indices for each peer."""


@dataclass(frozen=True)
class IID:
    """Shuffle, then cut into shards whose sizes differ by at most one: every peer sees the same distribution.

    >>> import labkit as lk
    >>> lk.data.load("digits").shards(3, lk.data.IID()).sizes
    (480, 479, 479)
    """

    common_order: ClassVar[bool] = False

    def deal(self, dataset: Dataset, peers: int, seed: int) -> Partition:
        require_room(dataset, peers)
        return split(len(dataset), parts=peers, how="random", seed=seed)


def require_room(dataset: Dataset, peers: int, least: int = 1) -> None:
    """Raise DataError unless there are `least` training examples for each of the peers."""
    n = len(dataset)
    if n < peers:
        raise DataError(f"{dataset.name} has {n} training examples, too few for {peers} peers: take at most {n} peers.")
    if n < peers * least:
        raise DataError(
            f"{dataset.name} has {n} training examples, too few to give each of {peers} peers {least}: take "
            f"least={n // peers} or less, or fewer peers."
        )
