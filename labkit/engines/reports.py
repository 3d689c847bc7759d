"""Reports: what a rank tells the notebook of each round, several at a time."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

from labkit.cluster.rank import tell
from labkit.engines.steering import HEED


class Part(NamedTuple):
    """One rank's share of a history row; it travels as a plain list."""

    round: int
    losses: tuple[float, ...]
    accuracies: tuple[float, ...] | None
    sent: float
    seconds: float
    peers: tuple[int, ...] | None


class Reports:
    """Sends the parts to the notebook, several at a time."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._sent = perf_counter()

    def add(self, part: Part) -> None:
        self._parts.append(part)
        if perf_counter() - self._sent > HEED:
            self.flush()

    def flush(self) -> None:
        if self._parts:
            tell({"parts": [list(part) for part in self._parts]})
        self._parts, self._sent = [], perf_counter()
