"""What is under way on a lab: who has the workers, since when, how far it is, and a way to end it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from labkit.text import Table


class Handle(Protocol):
    """Work on its way, as the lab sees it."""

    @property
    def title(self) -> str:
        """What it is."""

    @property
    def part_of(self) -> str:
        """The title of the run whose gang it is, else nothing."""

    @property
    def since(self) -> float:
        """When it began, in seconds since 1970."""

    @property
    def reached(self) -> str:
        """How far it is, in words."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""

    @property
    def abandoned(self) -> bool:
        """Whether nobody can reach it any more, so that it is to give way to other work."""

    def stop(self) -> None:
        """End it in order."""

    def cancel(self) -> None:
        """End it because the lab closes; harmless when it has ended."""


@dataclass(frozen=True)
class Work:
    """One run, gang or job under way: its `name`, `since` when (seconds since 1970) and how far it is."""

    name: str
    since: float
    progress: str
    handle: Handle

    def stop(self) -> None:
        """End it: a run after the round under way, a gang or a job at once."""
        self.handle.stop()


class Runs(tuple[Work, ...]):
    """What is under way on a lab, the oldest first; prints as a table.

    >>> lab.runs                        # doctest: +SKIP
    #  what                               since     progress
    0  Run: AllReduce, 2 peers, 3 rounds  12:03:07  round 1 of 3
    >>> lab.runs[0].stop()              # doctest: +SKIP
    """

    __slots__ = ()

    @classmethod
    def of(cls, handles: Iterable[Handle]) -> Runs:
        """Those that have not ended; a gang of a run is that run."""
        going = sorted((it for it in handles if not it.done), key=lambda it: (it.since, it.title))
        listed = [it for it in going if not it.part_of or not any(it.part_of == other.title for other in going)]
        return cls(Work(it.part_of or it.title, it.since, it.reached, it) for it in listed)

    def stop(self) -> None:
        """End all of it."""
        for work in self:
            work.stop()

    @property
    def _table(self) -> Table:
        rows = [(str(k), it.name, clock(it.since), it.progress) for k, it in enumerate(self)]
        return Table(("#", "what", "since", "progress"), rows, left=4)

    def __repr__(self) -> str:
        return repr(self._table) if self else "nothing is under way on this lab"

    def _repr_html_(self) -> str:
        return self._table._repr_html_() if self else repr(self)


def clock(moment: float) -> str:
    """A moment as the time of the day here.

    >>> len(clock(0.0))
    8
    """
    return time.strftime("%H:%M:%S", time.localtime(moment))
