"""Lanes: when each worker or peer of a run computed, waited and communicated, over the last messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from labkit.history.rows import Interval
from labkit.plots.bars import Bar, gantt
from labkit.plots.panel import Picture

MOST_LANES = 16  # shown, and reported
PERIOD, BURST = 0.25, 32  # of the intervals that begin in a period of so many seconds, so many are reported
_SHOWN = 16  # messages in a picture


class Bursts:
    """Which of one lane's intervals are reported: the first ones in every period, so that some follow each other."""

    def __init__(self) -> None:
        self._period, self._told = -1, 0

    def tells(self, seconds: float) -> bool:
        """Whether one that begins at this moment is reported."""
        period = int(seconds / PERIOD)
        if period != self._period:
            self._period, self._told = period, 0
        self._told += 1
        return self._told <= BURST


class Lanes:
    """The last intervals of each lane; `who` is what the lanes are called, `clock` whose seconds theirs are."""

    def __init__(self, who: str, clock: str) -> None:
        self.who, self._clock = who, clock
        self._lanes: dict[int, deque[Interval]] = {}

    def add(self, interval: Interval) -> None:
        """Keep an interval, if its lane is one that is shown."""
        if interval.lane < MOST_LANES:
            self._lanes.setdefault(interval.lane, deque(maxlen=2 * BURST)).append(interval)

    def __len__(self) -> int:
        return len(self._lanes)

    def picture(self, names: Sequence[str] = (), count: int = 0) -> Picture | None:
        """The lanes over the last successive messages; None before there are any.

        `names` are those of the lanes, `count` is how many there are, shown or not.
        """
        rows = {lane: _in_a_row(list(kept)) for lane, kept in sorted(self._lanes.copy().items())}
        if not any(rows.values()):
            return None
        newest = max((kept for kept in rows.values() if kept), key=lambda kept: kept[-1].done)
        lanes = {lane: [it for it in kept if it.done > newest[0].begun] for lane, kept in rows.items()}  # of this time
        every = [interval for kept in lanes.values() for interval in kept]
        zero = min(interval.begun for interval in every)
        bars = [bar for row, kept in enumerate(lanes.values()) for it in kept for bar in _bars(row, it, zero)]
        return gantt(
            sorted(bars, key=lambda bar: _ORDER.index(bar.kind)),
            [names[lane] if lane < len(names) else f"{self.who} {lane}" for lane in lanes],
            title=self._title(max(map(len, lanes.values())), max(count, len(lanes)), len(lanes)),
            note=self._note(every),
            alt=f"When {len(lanes)} {self.who}s computed, waited and communicated",
        )

    def _title(self, messages: int, count: int, shown: int) -> str:
        some = "" if shown == count else f" ({shown} of {count:,} {self.who}s)"
        return f"The {self.who}s' last {messages} messages{some}"

    def _note(self, intervals: Sequence[Interval]) -> str:
        note = "predicted by the virtual clock" if self._clock == "virtual" else "measured"
        if any(interval.overlapped for interval in intervals):
            note += "; what is exchanged while torch computes counts as computing"
        if any(interval.met is None for interval in intervals):
            note += "; to communicate is to ask and to wait for the answer"
        return note


_ORDER = ("compute", "wait", "communicate")


def _bars(row: int, it: Interval, zero: float) -> list[Bar]:
    met = it.arrived if it.met is None else it.met
    parts = (("compute", it.begun, it.arrived), ("wait", it.arrived, met), ("communicate", met, it.done))
    return [Bar(row, start - zero, end - zero, kind=kind) for kind, start, end in parts if end > start]


def _in_a_row(kept: list[Interval]) -> list[Interval]:
    """The last ones of the longest row of successive intervals, of several such rows the last."""
    gaps = [at for at, (before, now) in enumerate(pairwise(kept), 1) if now.number != before.number + 1]
    rows = [kept[begin:end][-_SHOWN:] for begin, end in pairwise([0, *gaps, len(kept)])]
    return max(reversed(rows), key=len)
