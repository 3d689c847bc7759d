"""Stopwatch: when a rank works, from message to message."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

from labkit.exchange import Message
from labkit.lanes import BURST, Bursts
from labkit.tree import Tree

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
