"""Reports: what a rank tells the notebook of each round, several at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

from labkit.cluster.gang.rank import tell
from labkit.exchange import Message
from labkit.history.lanes import BURST, Bursts
from labkit.history.rows import Event
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
            tell(told | {"laps": [list(lap) for lap in self._watch.recent()]})
        self._parts, self._events, self._sent = [], [], perf_counter()


# -- Stopwatch: when a rank works, from message to message.

MOST_STRETCHES = 20_000  # in a rank's timeline
_MOST_LAPS = 8 * BURST  # kept for one report


class Lap(NamedTuple):
    """A rank computed from `begun` until it had `arrived` at its message `number`, and went on when that was `done`."""

    number: int
    begun: float
    arrived: float
    done: float
    overlapped: bool = False


class Stopwatch:
    """When this rank works, from message to message, in seconds since `zero`; `steps` counts those of a round.

    Of the laps only bursts are kept, so that telling of them costs little however short they are. The ranks count from
    one moment, so that they keep the same ones.
    """

    def __init__(self, steps: Callable[[], int], zero: float) -> None:
        self._zero = zero
        self._steps, self._taken = steps, 0
        self._begun = self.seconds
        self._number, self._bursts = 0, Bursts()
        self._laps: deque[Lap] = deque(maxlen=_MOST_LAPS)
        self.stretches: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        return perf_counter() - self._zero

    def begin(self) -> None:
        """A round begins, and with it a stretch."""
        self._taken = 0
        self._begun = self.seconds

    def end(self, exchanged: Callable[[], tuple[float, float]] | None = None) -> None:
        """A round ends; if it communicated while it computed, `exchanged` tells how many seconds ago it did only that.

        It is asked for the laps that are kept, since it takes as long as a small step's hundredth.
        """
        end = self._stop()
        if exchanged is not None:
            if self._bursts.tells(end):
                arrived, done = (max(self._begun, end - ago) for ago in exchanged())
                self._laps.append(Lap(self._number, self._begun, arrived, done, overlapped=True))
                self._begun = done
            self._number += 1
        self.lap(self._begun, end, end)

    def lap(self, begun: float, arrived: float, done: float, overlapped: bool = False) -> None:
        """Keep one, if it falls into a burst."""
        if self._bursts.tells(arrived):
            self._laps.append(Lap(self._number, begun, arrived, done, overlapped))
        self._number += 1

    def timed(self, answer: Callable[[Message], Tree]) -> Callable[[Message], Tree]:
        """The same, with the time of each exchange left out of the stretches."""

        def stop_then_answer(message: Message) -> Tree:
            arrived = self._stop()
            reply = answer(message)
            begun, self._begun = self._begun, self.seconds
            self.lap(begun, arrived, self._begun)
            return reply

        return stop_then_answer

    def recent(self) -> list[Lap]:
        """The laps that were kept since this was asked last."""
        laps = list(self._laps)
        self._laps.clear()
        return laps

    def _stop(self) -> float:
        """A stretch ends; kept are those, up to `MOST_STRETCHES`, in which steps were taken, as the clock does."""
        end, taken = self.seconds, self._steps()
        if taken > self._taken and len(self.stretches) < MOST_STRETCHES:
            self.stretches.append((self._begun, end))
        self._taken = taken
        return end
