"""Answers to the exercises on graphs and trust: right ones, and wrong ones with their hints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def metropolis(edges: Any, n: int, more: int = 1, both: bool = True, rest: bool = True) -> Any:
    degree = [sum(i in edge for edge in edges) for i in range(n)]
    w = np.zeros((n, n))
    for a, b in edges:
        w[a, b] = 1 / (more + max(degree[a], degree[b]))
        w[b, a] = w[a, b] if both else 0
    return w + np.diag(1 - w.sum(axis=1)) if rest else w


def clip(x: Any, bound: float) -> Any:
    return x * (bound / max(np.linalg.norm(x), bound))


RIGHT: dict[str, Callable[..., Any]] = {
    "metropolis": metropolis,
    "reconstruct": lambda s, b: s[abs(b).argmax()] / b[abs(b).argmax()],
    "clip": clip,
}
WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("metropolis", lambda e, n: metropolis(e, n, both=False), "both directions"),
    ("metropolis", lambda e, n: metropolis(e, n, rest=False), "add up to 1"),
    ("metropolis", lambda e, n: metropolis(e, n, more=2), "counts itself"),
    ("reconstruct", lambda s, b: s[abs(b).argmax()], "times a number"),
    ("reconstruct", lambda s, b: -s[0] / b[0], "sign"),
    ("reconstruct", lambda s, b: s.sum(0), "bias k is"),
    ("clip", lambda x, c: np.clip(x, -c, c), "whole vector"),
    ("clip", lambda x, c: x * c / max(np.linalg.norm(x), 1e-9), "stays as it is"),
    ("clip", lambda x, c: x, "keep the direction"),
]
