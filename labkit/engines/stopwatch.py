"""Stopwatch: when a rank works, from message to message."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from labkit.exchange import Message
from labkit.tree import Tree

MOST_STRETCHES = 20_000  # in a rank's timeline


class Stopwatch:
    """When this rank works, from message to message, in seconds since it was made; `steps` counts those of a round."""

    def __init__(self, steps: Callable[[], int]) -> None:
        self._zero = self._begun = perf_counter()
        self._steps, self._taken = steps, 0
        self.stretches: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        return perf_counter() - self._zero

    def begin(self) -> None:
        """A round begins, and with it a stretch."""
        self._taken = 0
        self.start()

    def start(self) -> None:
        """A stretch begins."""
        self._begun = self.seconds

    def stop(self) -> None:
        """A stretch ends; kept are those, up to `MOST_STRETCHES`, in which steps were taken, as the clock does."""
        end, taken = self.seconds, self._steps()
        if taken > self._taken and len(self.stretches) < MOST_STRETCHES:
            self.stretches.append((self._begun, end))
        self._taken = taken

    def timed(self, answer: Callable[[Message], Tree]) -> Callable[[Message], Tree]:
        """The same, with the time of each exchange left out of the stretches."""

        def stop_then_answer(message: Message) -> Tree:
            self.stop()
            reply = answer(message)
            self.start()
            return reply

        return stop_then_answer
