"""What training makes of a partition: a classifier of real handwritten digits, fitted to what the workers really hold.

The classifier is linear least squares onto one-hot labels with a little ridge (Rifkin & Lippert, Notes on regularized
least-squares, 2007), because its training is exact and its work is a union: each worker sums XᵀX and XᵀY over the
items of its part, the sums are added, and (Σ XᵀX + λ1) W = Σ XᵀY is solved once. A lost item is missing from the
sums, a repeated one stands in them twice, and nothing else differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from labkit.checks import Floats, Integers, one_of
from labkit.data import load
from labkit.errors import SettingError

ORDERS = ("sorted", "shuffled")
_RIDGE = 1e-3  # per training example


@dataclass(frozen=True)
class Effect:
    """Test accuracy after training on what the workers hold, beside training on all the data; both of each class too.

    `digits[k]` are the classes found in item k; `bias` is how far the first step's mean gradient is off,
    ‖g − g*‖ / ‖g*‖ with g* the gradient on all the data.
    """

    accuracy: float
    by_class: tuple[float, ...]
    whole: float
    whole_by_class: tuple[float, ...]
    bias: float
    digits: tuple[tuple[int, ...], ...]

    @property
    def hardest_hit(self) -> int:
        """The class whose accuracy suffers most."""
        return int(np.argmax(np.subtract(self.whole_by_class, self.by_class)))


@dataclass(frozen=True)
class _Sums:
    """Per item: XᵀX [n, D, D], XᵀY [n, D, C], examples [n], and which classes it holds."""

    xx: Floats
    xy: Floats
    examples: Floats
    digits: tuple[tuple[int, ...], ...]


def train_on(held: Sequence[Integers], items: int, order: str = "sorted") -> Effect:
    """Train on digits dealt into `items` items, of which worker i holds those numbered `held[i]`.

    `order` is "sorted" (by digit, so that neighbouring items look alike) or "shuffled". Raises SettingError for
    another order, for more items than there are examples, and when no worker holds anything.
    """
    one_of(order, "order", ORDERS)
    if not sum(len(mine) for mine in held):
        raise SettingError("no worker holds an item, so there is nothing to train on: give back a part.")
    sums = _sums(items, order)
    whole, whole_by_class, whole_gradient = trained_on_all(items, order)
    accuracy, by_class, gradient = _fit(sums, held)
    bias = float(np.linalg.norm(gradient - whole_gradient) / np.linalg.norm(whole_gradient))
    return Effect(accuracy, by_class, whole, whole_by_class, bias, sums.digits)


def _fit(sums: _Sums, held: Sequence[Integers]) -> tuple[float, tuple[float, ...], Floats]:
    """Test accuracy, that of each class, and the mean gradient [D, C] at W = 0, after training on the held items."""
    xx = sum(sums.xx[mine].sum(axis=0) for mine in held)  # each worker adds up its own items, then all are added
    xy = sum(sums.xy[mine].sum(axis=0) for mine in held)
    examples = float(sum(sums.examples[mine].sum() for mine in held))
    weights = np.linalg.solve(xx + _RIDGE * examples * np.eye(len(xx)), xy)  # [D, C]
    _, _, x, y = digits()
    right = (x @ weights).argmax(axis=1) == y
    by_class = tuple(float(right[y == digit].mean()) for digit in range(weights.shape[1]))
    return float(right.mean()), by_class, -2 * xy / examples


@lru_cache(maxsize=128)
def trained_on_all(items: int = 1, order: str = "sorted") -> tuple[float, tuple[float, ...], Floats]:
    """Test accuracy, that of each class, and the first mean gradient [D, C], after training on all items."""
    return _fit(_sums(items, order), [np.arange(items)])


@lru_cache(maxsize=16)
def _sums(items: int, order: str) -> _Sums:
    x, y, _, _ = digits()
    if items > len(x):
        raise SettingError(f"{items} items are more than the {len(x)} training examples: take at most {len(x)}.")
    at = np.argsort(y, kind="stable") if order == "sorted" else np.random.default_rng(0).permutation(len(y))
    x, y = x[at], y[at]
    labels = np.eye(int(y.max()) + 1)[y]  # [N, C]
    cuts = np.array_split(np.arange(len(y)), items)
    return _Sums(
        xx=np.stack([x[cut].T @ x[cut] for cut in cuts]),
        xy=np.stack([x[cut].T @ labels[cut] for cut in cuts]),
        examples=np.array([len(cut) for cut in cuts], dtype=np.float64),
        digits=tuple(tuple(np.unique(y[cut]).tolist()) for cut in cuts),
    )


@cache
def digits() -> tuple[Floats, Integers, Floats, Integers]:
    """Training inputs [N, D] with a constant 1 for the bias, labels [N], and the same of the test set."""
    data = load("digits")
    x, test_x = (
        np.pad(np.asarray(inputs, dtype=np.float64), ((0, 0), (0, 1)), constant_values=1.0)
        for inputs in (data.x, data.test_x)
    )
    return x, np.asarray(data.y), test_x, np.asarray(data.test_y)
