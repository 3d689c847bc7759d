"""Answers to the exercises on speed-up: right ones, and wrong ones with their hints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

RIGHT: dict[str, Callable[..., Any]] = {
    "amdahl": lambda p, n: 1 / (1 - p + p / n),
    "serial_share": lambda s, n: (n / s - 1) / (n - 1),
    "fewest_workers": lambda p, share: max(1, math.ceil(p * share / ((1 - p) * (1 - share)))),
    "ring_seconds": lambda n, s, a, b: 2 * (n - 1) * a + 2 * (n - 1) / n * s / b,
}
WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("amdahl", lambda p, n: 1 - p + p / n, "one over it"),
    ("amdahl", lambda p, n: 1 / (p + (1 - p) / n), "share that \\*can\\*"),
    ("amdahl", lambda p, n: 1 - p + p * n, "Gustafson"),
    ("serial_share", lambda s, n: 1 - (1 / s - 1 / n) / (1 - 1 / n), "the other one"),
    ("serial_share", lambda s, n: 1 / s, "solve 1/S"),
    ("serial_share", lambda s, n: s / n, "Amdahl's law"),
    ("ring_seconds", lambda n, s, a, b: (n - 1) * (a + s / n / b), "two halves"),
    ("ring_seconds", lambda n, s, a, b: 2 * (n - 1) * (a + s / b), "a chunk"),
    ("ring_seconds", lambda n, s, a, b: 2 * (n - 1) / n * s / b, "latency"),
    ("fewest_workers", lambda p, share: 1, "take more"),
    ("fewest_workers", lambda p, share: 10**6, "take fewer"),
    ("fewest_workers", lambda p, share: p * share / ((1 - p) * (1 - share)), "no part of a worker"),
    ("fewest_workers", lambda p, share: int(p * share / ((1 - p) * (1 - share))), "take more"),
]
