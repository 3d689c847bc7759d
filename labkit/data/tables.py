"""The tables inside scikit-learn's wheel: measurements as numbers, and a class for each row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from labkit.data.tensors import Tensors, from_tensors


def digits() -> Tensors:
    """1,797 handwritten digits of 8×8 pixels, scaled to 0…1; a fixed fifth is the test set (see datasets/digits.md)."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return from_tensors(np.asarray(x) / 16.0, y, name="digits")


def table(name: str) -> Tensors:
    """One of scikit-learn's small tables, a fixed fifth of its rows as the test set (see datasets/NAME.md).

    Every column is standardised, (x − μ)/σ, by the mean and deviation of the training rows alone.
    """
    import sklearn.datasets

    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    made = from_tensors(x, y, name=name)
    deviation, mean = torch.std_mean(made.x, dim=0)
    return replace(made, x=(made.x - mean) / deviation, test_x=(made.test_x - mean) / deviation)
