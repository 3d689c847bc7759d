"""Reports: what a rank tells the notebook of each round, several at a time."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

from labkit.cluster.rank import tell
from labkit.engines.stopwatch import Stopwatch
from labkit.news import Event

EVERY = 0.5  # seconds between two reports, unless the user says


class Part(NamedTuple):
    """One rank's share of a history row; it travels as a plain list."""

    round: int
    losses: tuple[float, ...]
    accuracies: tuple[float, ...] | None
    sent: float
    seconds: float
    peers: tuple[int, ...] | None
    learning_rate: float | None = None


class Reports:
    """Sends parts and events to the notebook, several at a time, and when the rank worked since the last time.

    The first news are sent at once, others when `every` seconds have passed since; with None nothing before the end.
    """

    def __init__(self, watch: Stopwatch, every: float | None = EVERY) -> None:
        self._watch, self._every = watch, every
        self._parts: list[Part] = []
        self._events: list[Event] = []
        self._sent = float("-inf")

    def add(self, news: Part | Event) -> None:
        if isinstance(news, Event):
            self._events.append(news)
        else:
            self._parts.append(news)
        if self._every is not None and perf_counter() - self._sent > self._every:
            self.flush()

    def flush(self) -> None:
        if self._parts or self._events:
            told = {"parts": [list(part) for part in self._parts], "events": [list(event) for event in self._events]}
            tell(told | {"laps": [list(lap) for lap in self._watch.recent()]})
        self._parts, self._events, self._sent = [], [], perf_counter()
