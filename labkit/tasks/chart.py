"""Charts: what schedules and timelines have in common: who is busy when, predicted or measured, and its picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from labkit.checks import Floats, Integers
from labkit.plots.bars import Bar, gantt, occupancy
from labkit.plots.panel import Picture
from labkit.text import duration


class Chart(ABC):
    """What workers do between `start` and `finish`, seconds from 0; its `kind` is "predicted" or "measured"."""

    start: Floats
    finish: Floats
    kind: str
    policy: Any
    who: str  # what a worker is called

    def __post_init__(self) -> None:
        self.start.setflags(write=False)
        self.finish.setflags(write=False)

    @property
    @abstractmethod
    def workers(self) -> int:
        """How many workers there are, also those that do nothing."""

    @property
    @abstractmethod
    def busy(self) -> Floats:
        """How long each worker computes, [workers] seconds."""

    @property
    def makespan(self) -> float:
        """When the last worker has finished, in seconds."""
        return float(self.finish.max(initial=0.0))

    @property
    def idle(self) -> Floats:
        """How long each worker waits altogether until everyone has finished, [workers] seconds: makespan − busy."""
        return self.makespan - self.busy

    def plot(self, beside: Self | None = None, *, ax: Any = None, span: float | None = None) -> Picture:
        """Draw it; `beside` puts a second one below, a measured one above a predicted one.

        `span` in seconds fixes the time axis. With more than 2,000 bars or 60 workers the picture shows how busy the
        workers are instead of single bars.
        """
        first, second = self, beside
        if beside is not None and beside.kind == "measured" != self.kind:
            first, second = beside, self
        alike = second is not None and second.kind == first.kind and second.policy != first.policy
        note, below = (
            f"{f'{it.policy}, ' if alike else ''}{it.kind}: {duration(it.makespan)}" if it else ""
            for it in (first, second)
        )
        last, alt = second or first, repr(first)
        if first.start.size > 2000 or first.workers > 60:
            lane, marks = first._lane(), {**last._marks(), **({below: last.makespan} if second else {})}
            bars = lane, first.start.ravel(), first.finish.ravel(), first.workers
            title = first._name
            return occupancy(*bars, title=title, note=note, marks=marks, span=span, who=first.who, alt=alt, ax=ax)
        widest = max(first, last, key=lambda it: it.workers)
        return gantt(
            first._bars(widest.workers, waits=second is None),
            widest.lane_names,
            title=first._name,
            note=note,
            overlay=second._bars(widest.workers, waits=False) if second else (),
            overlay_note=below,
            marks=last._marks(),
            span=span,
            alt=alt + (f"; below it the {second.kind} one" if second else ""),
            ax=ax,
        )

    @property
    @abstractmethod
    def lane_names(self) -> Sequence[str]:
        """The names of the picture's rows."""

    @property
    @abstractmethod
    def _name(self) -> str: ...

    @abstractmethod
    def _lane(self) -> Integers:
        """The worker of each bar."""

    @abstractmethod
    def _bars(self, workers: int, waits: bool) -> list[Bar]:
        """The bars in rows of so many workers, with those of waiting if that is wanted."""

    def _marks(self) -> dict[str, float]:
        return {}

    @property
    @abstractmethod
    def _figures(self) -> str: ...

    def __repr__(self) -> str:  # measured without seconds: saved notebook outputs are compared as text
        return f"{self._name}, measured" if self.kind == "measured" else f"{self._name}, predicted: {self._figures}"

    def _repr_mimebundle_(self, **_: Any) -> Any:
        return self.plot()._repr_mimebundle_()
