"""A dataset: training and test examples as tensors, cut into shards for peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from labkit.errors import DataError
from labkit.tasks.split import Partition, split


class Sharding(Protocol):
    """A way to deal a dataset's training examples to peers."""

    def deal(self, dataset: Dataset, peers: int, seed: int) -> Partition:
        """Disjoint and complete shards of the training examples' indices."""


@dataclass(frozen=True)
class IID:
    """Shuffle, then cut into shards whose sizes differ by at most one: every peer sees the same distribution."""

    def deal(self, dataset: Dataset, peers: int, seed: int) -> Partition:
        return split(len(dataset), parts=peers, how="random", seed=seed)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training examples x [N, …] with targets y [N], and test examples; it travels to workers by name where it has one.

    >>> import labkit as lk
    >>> lk.data.load("digits")
    Dataset digits: 1438 training and 359 test examples of shape (64,), 10 classes
    """

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    source: Callable[[], Dataset] | None = None  # how a worker makes the same dataset for itself

    def __post_init__(self) -> None:
        for x, y, part in ((self.x, self.y, "training"), (self.test_x, self.test_y, "test")):
            if len(x) != len(y):
                raise DataError(
                    f"{self.name} has {len(x)} {part} inputs but {len(y)} targets: give one target for each input."
                )
        if not len(self.x):
            raise DataError(f"{self.name} has no training examples: give at least one.")

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return (
            f"Dataset {self.name}: {len(self)} training and {len(self.test_x)} test examples "
            f"of shape {tuple(self.x.shape[1:])}, {self.classes} classes"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is not None:
            return self.source, ()
        return Dataset, (self.name, self.x, self.y, self.test_x, self.test_y, self.classes)

    def shards(self, peers: int, how: Sharding | None = None, seed: int = 0) -> Partition:
        """One shard of training-example indices for each peer; IID unless `how` says otherwise.

        Raises DataError when there are fewer examples than peers.
        """
        if len(self) < peers:
            raise DataError(
                f"{self.name} has {len(self)} training examples, too few for {peers} peers: "
                f"take at most {len(self)} peers."
            )
        return (how or IID()).deal(self, peers, seed)
