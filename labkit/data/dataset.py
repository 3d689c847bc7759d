"""A dataset: what peers are trained on and tested with, cut into shards for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from labkit.checks import whole
from labkit.data.shards import IID, Sharding
from labkit.tasks.split import Partition


class Dataset(ABC):
    """Training examples (x, y) and test examples test_x [M, …], test_y [M]; to workers it travels by its `source`.

    `labkit.data.tensors.Tensors` holds its examples; those of torch's own datasets are loaded batch by batch.
    """

    name: str
    y: Tensor  # the training examples' targets [N]
    test_x: Tensor
    test_y: Tensor
    classes: int
    source: Callable[[], Dataset] | None  # how a worker makes the same dataset for itself
    stackable: ClassVar[bool]  # whether many examples can be had at once, as peers computed together need it

    @abstractmethod
    def __len__(self) -> int:
        """How many training examples there are."""

    @abstractmethod
    def trial(self) -> tuple[Tensor, Tensor]:
        """Two training examples [2, …], to try a model on; the largest class number is among them if it is known."""

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
        return (
            f"Dataset {self.name}: {self._size} training and {len(self.test_x)} test examples "
            f"of shape {tuple(self.shape)}{classes}"
        )

    @property
    def _size(self) -> str:
        return str(len(self))
