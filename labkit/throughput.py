"""Throughput: how fast a run goes now, and how long it will still take."""

from __future__ import annotations

from collections import deque
from time import monotonic

_WINDOW = 5.0  # seconds that "now" means, or the last two notes where those lie further apart
_GRAIN = 0.05  # seconds between two notes that are kept: rows come several at a time


class Throughput:
    """Rounds a second, from the moments at which rows came in."""

    def __init__(self) -> None:
        self._notes: deque[tuple[float, int]] = deque()  # when, and how many rounds were finished

    def note(self, rounds: int) -> None:
        """So many rounds are finished now."""
        now = monotonic()
        if len(self._notes) > 1 and now - self._notes[-2][0] < _GRAIN:
            self._notes.pop()
        self._notes.append((now, rounds))
        while len(self._notes) > 2 and now - self._notes[0][0] > _WINDOW:
            self._notes.popleft()

    def forget(self) -> None:
        """Count anew, as after a pause."""
        self._notes.clear()

    @property
    def rate(self) -> float | None:
        """Rounds a second; None where nobody can say yet."""
        notes = list(self._notes)
        if len(notes) < 2 or notes[-1][0] <= notes[0][0] or notes[-1][1] <= notes[0][1]:
            return None
        return (notes[-1][1] - notes[0][1]) / (notes[-1][0] - notes[0][0])


def remaining(seconds: float) -> str:
    """How long it still takes, as people say it.

    >>> remaining(0.4), remaining(75), remaining(7500)
    ('1 s left', '1 min 15 s left', '2 h 5 min left')
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s left"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s left"
    return f"{whole // 3600} h {whole % 3600 // 60} min left"
