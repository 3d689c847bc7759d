"""Reports: what a rank tells the notebook of each round, several at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

from labkit.cluster.gang.rank import tell
from labkit.exchange import Message
from labkit.history.lanes import BURST, Bursts
from labkit.history.rows import Event, Interval
from labkit.tree import Tree

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
            tell(told | {"intervals": [list(interval) for interval in self._watch.recent()]})
        self._parts, self._events, self._sent = [], [], perf_counter()


# -- Stopwatch: when a rank works, from message to message.

MOST_INTERVALS = 20_000  # in a rank's timeline
_MOST_RECENT = 8 * BURST  # intervals kept for one report


class Stopwatch:
    """When this rank works, from message to message, in seconds since `zero`; `steps` counts those of a round.

    Of the intervals that are told of only bursts are kept, so that it costs little however short they are. The ranks
    count from one moment, so that they keep the same ones.
    """

    def __init__(self, steps: Callable[[], int], zero: float, rank: int = 0) -> None:
        self._zero, self._rank = zero, rank
        self._steps, self._taken = steps, 0
        self._begun = self.seconds
        self._number, self._bursts = 0, Bursts()
        self._recent: deque[Interval] = deque(maxlen=_MOST_RECENT)
        self.intervals: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        return perf_counter() - self._zero

    def begin(self) -> None:
        """A round begins, and with it an interval."""
        self._taken = 0
        self._begun = self.seconds

    def end(self, exchanged: Callable[[], tuple[float, float]] | None = None) -> None:
        """A round ends; if it communicated while it computed, `exchanged` tells how many seconds ago it did only that.

        It is asked for the intervals that are kept, since it takes as long as a small step's hundredth.
        """
        end = self._stop()
        if exchanged is not None:
            if self._bursts.tells(end):
                arrived, done = (max(self._begun, end - ago) for ago in exchanged())
                self._recent.append(
                    Interval(self._rank, self._number, self._begun, arrived, None, done, overlapped=True)
                )
                self._begun = done
            self._number += 1
        self.interval(self._begun, end, end)

    def interval(self, begun: float, arrived: float, done: float) -> None:
        """Keep one, if it falls into a burst."""
        if self._bursts.tells(arrived):
            self._recent.append(Interval(self._rank, self._number, begun, arrived, None, done))
        self._number += 1

    def timed(self, answer: Callable[[Message], Tree]) -> Callable[[Message], Tree]:
        """The same, with the time of each exchange left out of the intervals."""

        def stop_then_answer(message: Message) -> Tree:
            arrived = self._stop()
            reply = answer(message)
            begun, self._begun = self._begun, self.seconds
            self.interval(begun, arrived, self._begun)
            return reply

        return stop_then_answer

    def recent(self) -> list[Interval]:
        """The intervals that were kept since this was asked last."""
        recent = list(self._recent)
        self._recent.clear()
        return recent

    def _stop(self) -> float:
        """A interval ends; kept are those, up to `MOST_INTERVALS`, in which steps were taken, as the clock does."""
        end, taken = self.seconds, self._steps()
        if taken > self._taken and len(self.intervals) < MOST_INTERVALS:
            self.intervals.append((self._begun, end))
        self._taken = taken
        return end
