"""A schedule: which worker runs which task when, predicted by a policy or measured on a cluster; one type for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from labkit.errors import ScheduleError
from labkit.plots import Bar, Picture, duration, gantt, occupancy
from labkit.tasks.arguments import Floats, Integers, numbers, some, whole, worker_speeds
from labkit.tasks.beside import above_and_below, notes


class Assignment(NamedTuple):
    """One task, the worker that runs it, and its start and finish in seconds."""

    task: int
    worker: int
    start: float
    finish: float


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """Who runs which task when: `worker`, `start`, `finish` [tasks], seconds from 0; predicted or measured.

    `lower_bound` in seconds is max(Σp/Σs, longest path / fastest speed): no policy ends earlier. `labels` name the
    tasks, `lanes` the workers. Two schedules are equal where the same tasks run on the same workers at the same times.
    """

    worker: Integers
    start: Floats
    finish: Floats
    speeds: Floats
    labels: tuple[str, ...] | None = None
    policy: str = ""
    lower_bound: float = 0.0
    kind: str = "predicted"
    lanes: tuple[str, ...] | None = None

    @classmethod
    def measured(
        cls,
        worker: ArrayLike,
        start: ArrayLike,
        finish: ArrayLike,
        workers: int | Sequence[str],
        *,
        labels: Sequence[str] | None = None,
        speeds: Sequence[float] | None = None,
        policy: str = "",
    ) -> Schedule:
        """Take what was measured, [tasks] each, on any clock in seconds: time here begins with the first start.

        `workers` is their number or their names. The lower bound takes the durations as they were. Raises
        ScheduleError where lengths differ, times are not finite, a task ends before it starts, or a worker is unknown.

        >>> Schedule.measured([0, 1], start=[100.0, 100.5], finish=[102.0, 103.0], workers=2).makespan
        3.0
        """
        who = numbers(worker, "worker", ScheduleError).astype(np.int64)
        begin, end = numbers(start, "start", ScheduleError), numbers(finish, "finish", ScheduleError)
        lanes = tuple(map(str, workers)) if isinstance(workers, Sequence) else None
        m = whole(len(lanes) if lanes is not None else workers, "workers", ScheduleError)
        if not who.shape == begin.shape == end.shape == (len(who),) or len(labels or who) != len(who):
            raise ScheduleError(f"{who.size} workers, {begin.size} starts and {end.size} ends; give one for each task.")
        if not (np.isfinite(begin).all() and (begin <= end).all() and np.isfinite(end).all()):
            raise ScheduleError(
                "a measured task has no finite start and end, or ends before it starts; mend the trace."
            )
        if len(who) and not (who.min() >= 0 and who.max() < m):
            raise ScheduleError(f"worker {int(who.max())} ran a task, but the workers are 0 … {m - 1}; name them all.")
        zero = float(begin.min()) if len(who) else 0.0
        spent, pace = end - begin, worker_speeds(speeds, m)
        bound = max(float((spent * pace[who]).sum() / pace.sum()), float(spent.max())) if len(who) else 0.0
        return cls(
            *(who, begin - zero, end - zero, pace),
            labels=tuple(map(str, labels)) if labels is not None else None,
            policy=policy,
            lower_bound=bound,
            kind="measured",
            lanes=lanes,
        )

    def __post_init__(self) -> None:
        for array in (self.worker, self.start, self.finish, self.speeds):
            array.setflags(write=False)

    @property
    def workers(self) -> int:
        """How many workers there are, also those that run nothing."""
        return len(self.speeds)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        mine, theirs = ((s.worker, s.start, s.finish, s.speeds) for s in (self, other))
        return self.kind == other.kind and all(map(np.array_equal, mine, theirs))

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.worker)

    @cached_property
    def assignments(self) -> tuple[Assignment, ...]:
        """Every task with its worker, start and finish, in the order of the tasks."""
        columns = (self.worker.tolist(), self.start.tolist(), self.finish.tolist())
        return tuple(Assignment(k, *row) for k, row in enumerate(zip(*columns, strict=True)))

    @property
    def makespan(self) -> float:
        """When the last task ends, in seconds."""
        return float(self.finish.max(initial=0.0))

    @cached_property
    def busy(self) -> Floats:
        """How long each worker computes, [workers] seconds."""
        busy: Floats = np.bincount(self.worker, self.finish - self.start, self.workers).astype(np.float64)
        return busy

    @property
    def idle(self) -> Floats:
        """How long each worker waits until the last one has finished, [workers] seconds."""
        return self.makespan - self.busy

    @property
    def efficiency(self) -> float:
        """The share of what all workers could have done until the makespan that they did: Σ busy·s / (makespan·Σs)."""
        possible = self.makespan * float(self.speeds.sum())
        return float(self.busy @ self.speeds) / possible if possible else 1.0

    def on(self, worker: int) -> tuple[Assignment, ...]:
        """What one worker runs, 𝒮ᵢ, in order of time."""
        tasks = np.flatnonzero(self.worker == worker)
        return tuple(self.assignments[k] for k in tasks[np.lexsort((self.finish[tasks], self.start[tasks]))].tolist())

    def plot(self, beside: Schedule | None = None, *, ax: Any = None, span: float | None = None) -> Picture:
        """Draw the schedule with its lower bound; `beside` puts a second one below it, measured above predicted.

        `span` in seconds fixes the time axis. With more than 2,000 tasks or 60 workers the picture shows how busy the
        workers are instead of single tasks.
        """
        first, second = above_and_below(self, beside)
        note, note_below = notes(first, second)
        marks = {"lower bound": (second or first).lower_bound}
        if len(first) > 2000 or first.workers > 60:
            bars = (first.worker, first.start, first.finish, first.workers)
            marks |= {note_below: second.makespan} if second else {}
            return occupancy(*bars, title=first._name, note=note, marks=marks, span=span, alt=repr(first), ax=ax)
        return gantt(
            first._bars(),
            max(first, second or first, key=lambda s: s.workers).lane_names,
            title=first._name,
            note=note,
            overlay=second._bars() if second else (),
            overlay_note=note_below,
            marks=marks,
            span=span,
            alt=repr(first) + (f"; below it the {second.kind} one" if second else ""),
            ax=ax,
        )

    @property
    def lane_names(self) -> tuple[str, ...]:
        """The workers' names, with their speed where these differ."""
        names = self.lanes or tuple(f"worker {w}" for w in range(self.workers))
        if (self.speeds == self.speeds[0]).all():
            return names
        return tuple(f"{name} (×{speed:.3g})" for name, speed in zip(names, self.speeds, strict=True))

    def _bars(self) -> list[Bar]:
        labels = self.labels or tuple(map(str, range(len(self))))
        return [Bar(a.worker, a.start, a.finish, labels[a.task]) for a in self.assignments]

    @property
    def _name(self) -> str:
        policy = f" ({self.policy})" if self.policy else ""
        return f"Schedule of {some(len(self), 'task')} on {some(self.workers, 'worker')}{policy}"

    def __repr__(self) -> str:
        if self.kind == "measured":  # no seconds: saved notebook outputs are compared as text
            return f"{self._name}, measured"
        seconds = f"makespan {duration(self.makespan)}, at least {duration(self.lower_bound)}"
        return f"{self._name}, predicted: {seconds}, efficiency {self.efficiency:.0%}".replace("%", " %")

    def _repr_mimebundle_(self, **_: Any) -> Any:
        return self.plot()._repr_mimebundle_()
