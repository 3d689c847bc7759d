"""Answers to the exercise on choosing: right ones, and wrong ones with their hints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def unbeaten(costs: list[float], scores: list[float], strict: bool = True, ties: bool = False) -> list[int]:
    def beats(j: int, i: int) -> bool:
        no_worse = costs[j] <= costs[i] and scores[j] >= scores[i]
        return no_worse and j != i and (ties or costs[j] < costs[i] or scores[j] > scores[i])

    everybody = range(len(costs))
    if not strict:  # only who is better in both beats
        return [i for i in everybody if not any(costs[j] < costs[i] and scores[j] > scores[i] for j in everybody)]
    return [i for i in everybody if not any(beats(j, i) for j in everybody)]


RIGHT: dict[str, Callable[..., Any]] = {"unbeaten": unbeaten}
WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("unbeaten", lambda c, s: unbeaten(c, s, strict=False), "differs from it"),
    ("unbeaten", lambda c, s: unbeaten(c, s, ties=True), "equal in both"),
    ("unbeaten", lambda c, s: [c.index(min(c))] if len(c) == 2 and c[0] < c[1] else unbeaten(c, s), "nobody beats"),
    ("unbeaten", lambda c, s: [k + 1 for k in unbeaten(c, s)], "counted from 0"),
    ("unbeaten", lambda c, s: "all", "in a list"),
]
