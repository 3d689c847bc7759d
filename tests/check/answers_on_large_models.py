"""Answers to the exercises on large models: right ones, and typical wrong ones with the hint that each should get."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def shares(x: Any, up: Any, down: Any, peers: int) -> list[Any]:
    return [np.maximum(x @ a, 0) @ b for a, b in zip(np.split(up, peers, 1), np.split(down, peers, 0), strict=True)]


def shares_the_wrong_way(x: Any, up: Any, down: Any, peers: int) -> list[Any]:
    """Rows first: the bend comes before the sum."""
    parts = zip(np.split(x, peers, 1), np.split(up, peers, 0), strict=True)
    return [np.maximum(a @ b, 0) @ down for a, b in parts]


RIGHT: dict[str, Callable[..., Any]] = {
    "transformer_parameters": lambda L, h, V, s: L * (12 * h * h + 13 * h) + (V + s) * h + 2 * h,
    "devices_needed": lambda psi, tokens, days, achieved: math.ceil(6 * psi * tokens / (days * 86400 * achieved)),
    "zero_memory": lambda psi, n, s: psi * (2 / (n if s > 2 else 1) + 2 / (n if s > 1 else 1) + 12 / (n if s else 1)),
    "adjoint": lambda y: [sum(it[j] for it in y) for j in range(len(y))],
    "pipeline_bubble": lambda p, m: (p - 1) / (m + p - 1),
    "tensor_mlp": shares,
    "tensor_bytes": lambda L, T, h, n: 4 * L * 2 * (n - 1) / n * 4 * T * h,
}
WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("transformer_parameters", lambda L, h, V, s: L * (12 * h * h + 13 * h) + (V + s) * h, "last layer has a scale"),
    ("transformer_parameters", lambda L, h, V, s: L * (12 * h * h + 13 * h) + V * h + 2 * h, "positions have"),
    ("transformer_parameters", lambda L, h, V, s: L * 12 * h * h + (V + s) * h + 2 * h, "13 h numbers"),
    ("transformer_parameters", lambda L, h, V, s: L * (12 * h * h + 13 * h) + (2 * V + s + 2) * h, "count it once"),
    ("devices_needed", lambda psi, tokens, days, a: 6 * psi * tokens / (days * 86400 * a), "round up"),
    ("devices_needed", lambda psi, tokens, days, a: math.ceil(6 * psi * tokens / (days * a)), "86,400"),
    ("devices_needed", lambda psi, tokens, days, a: math.ceil(2 * psi * tokens / (days * 86400 * a)), "6 operations"),
    ("zero_memory", lambda psi, n, s: 16 * psi, "what stage 0 takes"),
    ("zero_memory", lambda psi, n, s: psi * (2 + 14 / n) if s else 16 * psi, "what stage 2 takes"),
    ("zero_memory", lambda psi, n, s: psi * (8 + 8 / n) if s == 1 else 16 * psi, "two bytes"),
    ("adjoint", lambda y: [it[j] for j, it in enumerate(y)], "went to all n peers"),
    ("adjoint", lambda y: np.mean(y, axis=0), "nothing was divided"),
    ("adjoint", lambda y: np.sum(y, axis=1), "its own row of all peers"),
    ("adjoint", lambda y: np.zeros_like(y[0]), "who received it"),
    ("pipeline_bubble", lambda p, m: (p - 1) / m, "idle time over busy time"),
    ("pipeline_bubble", lambda p, m: m / (m + p - 1), "in which it works"),
    ("pipeline_bubble", lambda p, m: 100 * (p - 1) / (m + p - 1), "not per cent"),
    ("pipeline_bubble", lambda p, m: p / (m + p), "those in which a stage stands still"),
    ("tensor_mlp", lambda x, up, down, n: [np.maximum(x @ up, 0) @ down] * n, "only its own columns"),
    ("tensor_mlp", lambda x, up, down, n: [np.maximum(x @ up, 0) @ down / n] * n, "i-th block of columns"),
    ("tensor_mlp", shares_the_wrong_way, "by columns and down by rows"),
    ("tensor_bytes", lambda L, T, h, n: 2 * L * 2 * (n - 1) / n * 4 * T * h, "on the way back"),
    ("tensor_bytes", lambda L, T, h, n: 4 * L * 2 * (n - 1) / n * T * h, "four bytes"),
    ("tensor_bytes", lambda L, T, h, n: 4 * L * 4 * T * h, "the bytes of tokens"),
]
