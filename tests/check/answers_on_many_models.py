"""Answers to the exercises on many models and wrong labels: right ones, and wrong ones with their hints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def softmax(z: Any) -> Any:
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def easiest(losses: Any, keep: float) -> Any:
    return np.sort(np.argsort(losses)[: max(1, int(keep * len(losses)))])


RIGHT: dict[str, Callable[..., Any]] = {
    "disagreement": lambda a: np.mean([len(set(column)) > 1 for column in a.T]),
    "mutual_bytes": lambda k, n, c: 4 * (k - 1) * n * c,
    "break_even": lambda p, n, c: 2 * p / n / c,
    "softened": lambda z, t: softmax(z / t),
    "picked": easiest,
}
WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("disagreement", lambda a: (a == a[0]).all(0).mean(), "they agree"),
    ("disagreement", lambda a: (a != a[0]).any(0).sum(), "a share"),
    ("disagreement", lambda a: 0.123, "as soon as one peer"),
    ("mutual_bytes", lambda k, n, c: (k - 1) * n * c, "4 bytes"),
    ("mutual_bytes", lambda k, n, c: 4 * k * n * c, "to itself"),
    ("mutual_bytes", lambda k, n, c: 4 * (k - 1) * n, "for each class"),
    ("break_even", lambda p, n, c: 2 * p / c, "n below"),
    ("break_even", lambda p, n, c: p / n / c, "two gradients"),
    ("break_even", lambda p, n, c: p, "solve for B"),
    ("softened", lambda z, t: softmax(z), "divide the scores"),
    ("softened", lambda z, t: softmax(z * t), "surer"),
    ("softened", lambda z, t: np.exp(z / t), "add up to 1"),
    ("picked", lambda x, keep: np.sort(np.argsort(-x)[: max(1, int(keep * len(x)))]), "hardest"),
    ("picked", lambda x, keep: easiest(x, keep)[::-1], "ascending"),
    ("picked", lambda x, keep: np.arange(max(1, int(keep * len(x)))), "sort by the partner"),
]
