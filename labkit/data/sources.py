"""Where data come from: real data sets that are there offline."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import torch

from labkit.data.dataset import Dataset
from labkit.errors import DataError

SOURCES = ("digits",)
_TEST_SHARE = 0.2


def load(name: str) -> Dataset:
    """A data set by name; each is loaded once in a process.

    Raises DataError for a name that is not one of `SOURCES`.
    """
    if name not in SOURCES:
        raise DataError(f"There is no data set {name!r}: choose one of {', '.join(SOURCES)}.")
    return _scikit_learn(name)


def from_tensors(x: Any, y: Any, test_share: float = _TEST_SHARE, seed: int = 0, name: str = "yours") -> Dataset:
    """Your own inputs x [N, …] and class numbers y [N], a seeded share of them held back as the test set.

    Raises DataError when x and y differ in length or nothing is left to train on.
    """
    x = torch.as_tensor(x, dtype=torch.float32)
    y = torch.as_tensor(y, dtype=torch.int64)
    if len(x) != len(y):
        raise DataError(f"{name} has {len(x)} inputs but {len(y)} targets: give one target for each input.")
    order = torch.as_tensor(np.random.default_rng(seed).permutation(len(x)))
    held_back = round(test_share * len(x))
    test, train = order[:held_back], order[held_back:]
    classes = int(y.max()) + 1 if len(y) else 0
    return Dataset(name, x[train], y[train], x[test], y[test], classes)


@cache
def _scikit_learn(name: str) -> Dataset:
    """1,797 handwritten digits of 8×8 pixels, scaled to 0…1; a fixed fifth is the test set (see datasets/digits.md)."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    made = from_tensors(np.asarray(x) / 16.0, y, name=name)
    return Dataset(name, made.x, made.y, made.test_x, made.test_y, made.classes, source=partial(load, name))
