"""Answers to the exercises on clients: right ones, and wrong ones with their hints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def nova(changes: Any, steps: Any, shares: Any) -> Any:
    return np.dot(shares, steps) * sum(p * c / t for p, c, t in zip(shares, changes, steps, strict=True))


RIGHT: dict[str, Callable[..., Any]] = {
    "fedavg_end": lambda a, t, r: np.average(a, weights=[1 - (1 - r) ** s for s in t]),
    "fednova_step": nova,
    "fair_rates": lambda steps: [1 - 0.3 ** (1 / s) for s in steps],
}
WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("fedavg_end", lambda a, t, r: np.mean(a), "should end"),
    ("fedavg_end", lambda a, t, r: np.average(a, weights=t), "limit of small rates"),
    ("fedavg_end", lambda a, t, r: np.average(a, weights=[(1 - r) ** s for s in t]), "solve for x"),
    ("fednova_step", lambda c, t, p: np.average(c, axis=0, weights=p), "divide each change"),
    ("fednova_step", lambda c, t, p: nova(c, t, p) / np.dot(p, t), "one step"),
    ("fednova_step", lambda c, t, p: sum(c), "direction is"),
    ("fair_rates", lambda steps: [0.1] * len(steps), "of its way in a round"),
    ("fair_rates", lambda steps: [0.9 / s for s in steps], "of its way in a round"),
    ("fair_rates", lambda steps: [0.0] * len(steps), "takes no step"),
    ("fair_rates", lambda steps: [0.1], "learning rates"),
]
