"""The tables inside scikit-learn's wheel: measurements as numbers, and a class for each row."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from labkit.data.tensors import Tensors, from_tensors


def digits() -> Tensors:
    """1,797 handwritten digits of 8×8 pixels, scaled to 0…1; a fixed fifth is the test set (see datasets/digits.md)."""
    table = np.loadtxt(_file("digits.csv.gz"), delimiter=",", dtype=np.float32)
    return from_tensors(table[:, :-1] / 16.0, table[:, -1].astype(np.int64), name="digits")


def _file(name: str) -> Path:
    """A file of scikit-learn's, read without importing it, which takes a worker that has just started a second."""
    package = find_spec("sklearn")
    assert package is not None
    return Path(next(iter(package.submodule_search_locations or ()))) / "datasets" / "data" / name


def table(name: str) -> Tensors:
    """One of scikit-learn's small tables, a fixed fifth of its rows as the test set (see datasets/NAME.md).

    Every column is standardised, (x − μ)/σ, by the mean and deviation of the training rows alone.
    """
    import sklearn.datasets

    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    made = from_tensors(x, y, name=name)
    deviation, mean = torch.std_mean(made.x, dim=0)
    return replace(made, x=(made.x - mean) / deviation, test_x=(made.test_x - mean) / deviation)
