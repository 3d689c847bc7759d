"""Synchronise workers that take steps together: 𝒯_sync = ∩ 𝒯ᵢ, the steps that everyone has finished.

Worker i takes p[i, k] seconds for step k. All policies are one recurrence, with F[k] = max over i of finish[i, k] the
moment at which step k is in the intersection:

    start[i, k] = max(finish[i, k−1], F[k−1−s])        finish[i, k] = start[i, k] + p[i, k]

s = 0 is bulk-synchronous (a barrier after every step), 0 < s < ∞ stale-synchronous (nobody begins a step more than s
ahead of the slowest), s = ∞ asynchronous (nobody waits).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from labkit.checks import Floats, Integers, numbers, whole
from labkit.errors import ScheduleError
from labkit.plots.bars import Bar
from labkit.tasks.chart import Chart
from labkit.text import duration, name_all, some


@dataclass(frozen=True)
class BSP:
    """Bulk-synchronous parallel: a barrier after every step (Valiant, Comm. ACM 33(8), 1990)."""

    bound: ClassVar[float] = 0  # how many steps a worker may be ahead of the slowest when it begins a step


@dataclass(frozen=True)
class SSP:
    """Stale-synchronous parallel: at most `staleness` steps ahead of the slowest (Ho et al., NeurIPS 2013).

    A worker that has finished c steps begins the next one when everyone has finished c − s. SSP(0) is BSP,
    SSP(math.inf) is ASP. Raises ScheduleError for a bound that is negative or no whole number.
    """

    staleness: float  # the bound

    def __post_init__(self) -> None:
        if not (isinstance(self.staleness, float) and self.staleness == math.inf):
            whole(self.staleness, "the staleness bound", ScheduleError, least=0)

    @property
    def bound(self) -> float:
        """How many steps a worker may be ahead of the slowest when it begins a step."""
        return self.staleness


@dataclass(frozen=True)
class ASP:
    """Asynchronous parallel: nobody waits (as Hogwild, Recht et al., NeurIPS 2011, and Downpour SGD do)."""

    bound: ClassVar[float] = math.inf


def synchronize(step_times: Any, policy: BSP | SSP | ASP) -> Timeline:
    """Predict when each worker takes its steps: `step_times` [workers, steps] seconds, and who waits for whom.

    Raises ScheduleError for times that are negative or not finite (naming worker and step), rows of unequal length,
    and anything that is not BSP(), SSP(s) or ASP().

    >>> synchronize([[1, 1, 1], [2, 2, 2]], BSP()).idle
    array([3., 0.])
    >>> synchronize([[1, 1, 1], [2, 2, 2]], SSP(1)).start[0]
    array([0., 1., 2.])
    """
    if not isinstance(policy, (BSP, SSP, ASP)):
        raise ScheduleError(f"policy {policy!r} is none of BSP(), SSP(s) and ASP(); give one of these.")
    start, finish = recurrence(_times(step_times).T, policy.bound)
    return Timeline(np.ascontiguousarray(start.T), np.ascontiguousarray(finish.T), policy)


def recurrence(times: Floats, bound: float) -> tuple[Floats, Floats]:
    """Start and finish of every step, both [steps, workers] as `times` are, if nobody may be more steps ahead."""
    start, finish = np.empty(times.shape), np.empty(times.shape)
    ready = np.zeros(times.shape[1])
    for k in range(len(times)):
        if k > bound:  # step k - 1 - bound has to be finished by all
            ready = np.maximum(ready, finish[k - 1 - int(bound)].max())
        start[k] = ready
        ready = finish[k] = start[k] + times[k]
    return start, finish


@dataclass(frozen=True, eq=False, repr=False)
class Timeline(Chart):
    """When every worker takes every step: `start`, `finish` [workers, steps], seconds from 0; predicted or measured.

    `who` is what the workers are called.
    """

    start: Floats
    finish: Floats
    policy: BSP | SSP | ASP
    kind: str = "predicted"
    who: str = "worker"

    @classmethod
    def measured(cls, start: ArrayLike, finish: ArrayLike, policy: BSP | SSP | ASP, who: str = "worker") -> Timeline:
        """Take what was measured, [workers, steps] on any clock in seconds: time here begins with the first start.

        Raises ScheduleError where shapes differ, or a step starts before the worker's previous one has ended.
        """
        begin, end = _times(start, "start", clock=True), _times(finish, "finish", clock=True)
        if begin.shape != end.shape:
            raise ScheduleError(f"start has the shape {begin.shape}, finish {end.shape}; measure both for every step.")
        if not ((begin <= end).all() and (end[:, :-1] <= begin[:, 1:]).all()):
            raise ScheduleError("a worker's steps overlap or end before they start; give the steps in order of time.")
        return cls(begin - begin.min(), end - begin.min(), policy, "measured", who)

    @property
    def workers(self) -> int:
        return int(self.start.shape[0])

    @property
    def steps(self) -> int:
        """How many steps each worker takes."""
        return int(self.start.shape[1])

    @property
    def busy(self) -> Floats:
        busy: Floats = (self.finish - self.start).sum(axis=1)
        return busy

    @property
    def waiting(self) -> Floats:
        """How long each worker waits before each step, [workers, steps] seconds."""
        return self.start - np.pad(self.finish[:, :-1], ((0, 0), (1, 0)))

    @cached_property
    def synchronized(self) -> Floats:
        """When each step enters the intersection ∩ 𝒯ᵢ, that is, when the last worker finishes it: [steps] seconds."""
        moments: Floats = self.finish.max(axis=0)
        return moments

    @cached_property
    def events(self) -> Floats:
        """The moments at which someone finishes a step, ascending: [events] seconds."""
        return np.unique(self.finish)

    @property
    def frontier(self) -> Integers:
        """|∩ 𝒯ᵢ| at each of `events`: how many steps everyone has finished by then, [events]."""
        counts: Integers = self.frontier_at(self.events)
        return counts

    def frontier_at(self, seconds: ArrayLike) -> Any:
        """|∩ 𝒯ᵢ|, how many steps everyone has finished at these moments (in the shape of `seconds`)."""
        return np.searchsorted(self.synchronized, seconds, side="right")

    @cached_property
    def staleness(self) -> Integers:
        """How many steps each worker is ahead of the slowest as it begins each step, [workers, steps]."""
        ahead: Integers = np.maximum(np.arange(self.steps) - self.frontier_at(self.start), 0)
        return ahead

    @property
    def lane_names(self) -> Sequence[str]:
        """The names of the picture's rows: the workers, and in the last one |∩ 𝒯ᵢ|."""
        return [*(f"{self.who} {i}" for i in range(self.workers)), "all (∩)"]

    def _lane(self) -> Integers:
        return np.repeat(np.arange(self.workers), self.steps)

    def _bars(self, workers: int, waits: bool) -> list[Bar]:
        # in the last row one for every stretch in which the frontier does not move
        bars = [
            Bar(i, start, finish, str(k))
            for i in range(self.workers)
            for k, (start, finish) in enumerate(zip(self.start[i].tolist(), self.finish[i].tolist(), strict=True))
        ]
        if waits:
            long = np.argwhere(self.waiting > 1e-9 * self.makespan).tolist()
            # Who waits for nobody is between its steps with the server.
            between = "communicate" if self.kind == "measured" and isinstance(self.policy, ASP) else "wait"
            bars += [Bar(i, self.finish[i, k - 1] if k else 0.0, self.start[i, k], None, between) for i, k in long]
        moments = [0.0, *self.synchronized.tolist()]
        bars += [Bar(workers, a, b, str(k), "finished by all") for k, (a, b) in enumerate(pairwise(moments)) if b > a]
        return bars

    @property
    def _name(self) -> str:
        return f"Timeline of {some(self.workers, self.who)} and {some(self.steps, 'step')}, {self.policy}"

    @property
    def _figures(self) -> str:
        idle = duration(float(self.idle.sum()))
        return f"makespan {duration(self.makespan)}, {idle} idle in all, staleness ≤ {self.staleness.max()}"


def _times(values: Any, name: str = "step_times", clock: bool = False) -> Floats:
    try:
        rows = values if hasattr(values, "__array__") else [list(row) for row in values]
    except TypeError:
        raise ScheduleError(f"{name} must be [workers, steps]; give a list of seconds for each worker.") from None
    if len(counts := {len(row) for row in rows}) > 1:
        raise ScheduleError(f"{name} has rows of {name_all(sorted(counts))} steps; give every worker as many.")
    times = numbers(rows, name, ScheduleError)
    if times.ndim != 2 or not times.size:
        raise ScheduleError(
            f"{name} has the shape {times.shape}; give seconds as [workers, steps], at least one of each."
        )
    bad = ~np.isfinite(times) if clock else ~(np.isfinite(times) & (times >= 0))
    if bad.any():
        i, k = np.argwhere(bad)[0].tolist()
        raise ScheduleError(f"{name} of worker {i}, step {k} is {times[i, k]:g}; give finite seconds, not negative.")
    return times
