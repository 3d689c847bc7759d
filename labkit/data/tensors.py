"""Data of your own: tensors, arrays or lists as a dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.data.dataset import Dataset
from labkit.errors import DataError

TEST_SHARE = 0.2
_TOKENS = (torch.int64, torch.int32)


def from_tensors(x: Any, y: Any, test_share: float = TEST_SHARE, seed: int = 0, name: str = "yours") -> Dataset:
    """Your own inputs x [N, …] and class numbers y [N], a seeded share of them held back as the test set.

    Inputs of 32 or 64 bit integers are taken for token numbers and stay integers, as an embedding wants them; all
    others (bytes of pictures among them) become float32.

    Raises DataError when x and y differ in length or nothing is left to train on.

    >>> from_tensors([[0.5], [1.5], [2.5], [3.5], [4.5]], [0, 1, 0, 1, 0])
    Dataset yours: 4 training and 1 test examples of shape (1,), 2 classes
    """
    x, y = _inputs(x), torch.as_tensor(y, dtype=torch.int64)
    if len(x) != len(y):
        raise DataError(f"{name} has {len(x)} inputs but {len(y)} targets: give one target for each input.")
    order = torch.as_tensor(np.random.default_rng(seed).permutation(len(x)))
    held_back = round(test_share * len(x))
    test, train = order[:held_back], order[held_back:]
    classes = int(y.max()) + 1 if len(y) else 0
    return Dataset(name, x[train], y[train], x[test], y[test], classes)


def _inputs(x: Any) -> Tensor:
    given = torch.as_tensor(x)
    if given.dtype in _TOKENS:
        return given.to(torch.int64)
    return torch.as_tensor(x, dtype=torch.float32)
