"""A dataset: training and test examples as tensors, cut into shards for peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from labkit.data.shards import IID, Sharding
from labkit.errors import DataError, SettingError
from labkit.tasks.arguments import generator, whole
from labkit.tasks.split import Partition


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

        Raises SettingError for `peers` < 1, and DataError when there are too few examples for them.
        """
        return (how or IID()).deal(self, whole(peers, "peers", SettingError), seed)

    def hold_out(self, share: float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Cut the training examples in two, (private, public): the public part holds a seeded `share` of them.

        Both keep the test set. FedMD (arXiv:1910.03581) and FedDF (arXiv:2006.07242) train peers on the private part
        and let them exchange predictions on the public one.

        Raises SettingError for a share outside 0…1, and DataError where a part would be empty.

        >>> import labkit as lk
        >>> private, public = lk.data.load("digits").hold_out(0.25)
        >>> len(private), len(public)
        (1078, 360)
        """
        size = round(fraction(share, "share") * len(self))
        if not 0 < size < len(self):
            raise DataError(
                f"{self.name} has {len(self)} training examples, of which a share of {share} leaves one part empty: "
                "give a share between 0 and 1."
            )
        return _part(self, size, seed, public=False), _part(self, size, seed, public=True)


def fraction(value: Any, name: str) -> float:
    """Return a share between 0 and 1; SettingError for anything else."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not 0 <= value <= 1:
        raise SettingError(f"{name}={value!r} is no share: give a number from 0 to 1.")
    return float(value)


def _part(dataset: Dataset, size: int, seed: int, public: bool) -> Dataset:
    """The public part of `size` examples, or the private rest."""
    order = generator(seed, SettingError).permutation(len(dataset))
    mine = torch.from_numpy(order[:size] if public else order[size:])
    return replace(
        dataset,
        name=f"{dataset.name}, {'public' if public else 'private'} part",
        x=dataset.x[mine],
        y=dataset.y[mine],
        source=partial(_part, dataset, size, seed, public) if dataset.source else None,
    )
