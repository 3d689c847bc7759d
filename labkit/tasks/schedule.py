"""Schedule work on workers by a policy: 𝒮 = ∪ 𝒮ᵢ, who runs which task when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from labkit.checks import Floats, Integers, numbers, one_of, speeds_of, whole
from labkit.errors import ScheduleError
from labkit.plots.bars import Bar
from labkit.tasks.chart import Chart
from labkit.tasks.graph import Graph
from labkit.tasks.policies import Placement, Problem, earliest_finish, greedy, longest_first, round_robin, stealing
from labkit.text import duration, some

__all__ = ["POLICIES", "Assignment", "Schedule", "schedule"]

POLICIES: dict[str, Callable[[Problem], Placement]] = {
    "fifo": round_robin,
    "round-robin": round_robin,
    "list": greedy,
    "lpt": longest_first,
    "heft": earliest_finish,
    "stealing": stealing,
}


def schedule(
    costs: Any,
    workers: int,
    policy: str = "lpt",
    *,
    speeds: Sequence[float] | None = None,
    after: Any = None,
    transfer: Any = 0.0,
    seed: int = 0,
) -> Schedule:
    """Predict who runs which task when: tasks of known cost on `workers` machines, by one of the policies.

    `costs` are seconds on a worker of speed 1, [tasks] or a mapping of name → seconds; `speeds` [workers] (default 1).
    `after` gives each task's predecessors: a list with one entry for each task, or a mapping of task → predecessors.
    `transfer` is the time a result takes to another worker: seconds, or a mapping (task, task after it) → seconds.

    - `fifo`, also `round-robin`: task k goes to worker k mod m.
    - `list`: whoever is free takes the next task (Graham, 1966).
    - `lpt`: the same, the longest task first (Graham, 1969).
    - `heft`: by the length of the path that still follows, into gaps too (Topcuoglu, Hariri & Wu, 2002).
    - `stealing`: equal blocks at first; whoever runs out steals by `seed` (Blumofe & Leiserson, 1999).

    Raises ScheduleError for costs or transfers that are negative or not finite (naming the task), no workers, speeds
    that are not positive, lengths that do not fit, unknown tasks or policies, and dependencies that form a cycle.

    >>> plan = schedule([3, 3, 2, 2, 2], workers=2)
    >>> plan
    Schedule of 5 tasks on 2 workers (lpt), predicted: makespan 7 s, at least 6 s, efficiency 86 %
    >>> schedule({"load": 1, "train": 2, "test": 1}, 2, after={"train": "load", "test": "train"}).makespan
    4.0
    """
    names: Sequence[Any] = tuple(costs) if isinstance(costs, Mapping) else range(len(_sized(costs)))
    price = numbers(costs.values() if isinstance(costs, Mapping) else costs, "costs", ScheduleError)
    if not len(names) or price.ndim != 1:
        raise ScheduleError(f"costs have the shape {price.shape}; give one number of seconds for each task.")
    if (bad := ~(np.isfinite(price) & (price >= 0))).any():
        k = int(bad.argmax())
        raise ScheduleError(f"task {names[k]!r} costs {price[k]:g}; give seconds as a finite number, not negative.")
    pace = speeds_of(speeds, whole(workers, "workers", ScheduleError), "worker", ScheduleError)
    with np.errstate(over="ignore"):  # asked here, once, so that no sum below can overflow
        longest = price.sum() / pace.min()
    if not np.isfinite(longest):
        raise ScheduleError("the costs add up to more seconds than a float can hold; give them in a larger unit.")
    one_of(policy, "policy", POLICIES, ScheduleError)
    graph = Graph.read(after, transfer, names)
    placed = POLICIES[policy](Problem(price, pace, graph, whole(seed, "seed", ScheduleError, least=0)))
    longest = graph.longest_path(price) if graph else float(price.max())
    return Schedule(
        *placed,
        speeds=pace,
        labels=None if isinstance(names, range) else tuple(map(str, names)),
        policy=policy,
        lower_bound=max(float(price.sum() / pace.sum()), longest / float(pace.max())),
    )


def _sized(costs: Any) -> Any:
    if hasattr(costs, "__len__") and not isinstance(costs, str):
        return costs
    raise ScheduleError(f"costs are {costs!r}; give a list of seconds, one for each task.")


class Assignment(NamedTuple):
    """One task, the worker that runs it, and its start and finish in seconds."""

    task: int
    worker: int
    start: float
    finish: float


@dataclass(frozen=True, eq=False, repr=False)
class Schedule(Chart):
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
    who = "worker"

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
        spent, pace = end - begin, speeds_of(speeds, m, "worker", ScheduleError)
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
        super().__post_init__()
        self.worker.setflags(write=False)
        self.speeds.setflags(write=False)

    @property
    def workers(self) -> int:
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

    @cached_property
    def busy(self) -> Floats:
        """How long each worker computes, [workers] seconds."""
        busy: Floats = np.bincount(self.worker, self.finish - self.start, self.workers).astype(np.float64)
        return busy

    @property
    def efficiency(self) -> float:
        """The share of what all workers could have done until the makespan that they did: Σ busy·s / (makespan·Σs)."""
        possible = self.makespan * float(self.speeds.sum())
        return float(self.busy @ self.speeds) / possible if possible else 1.0

    def on(self, worker: int) -> tuple[Assignment, ...]:
        """What one worker runs, 𝒮ᵢ, in order of time."""
        tasks = np.flatnonzero(self.worker == worker)
        return tuple(self.assignments[k] for k in tasks[np.lexsort((self.finish[tasks], self.start[tasks]))].tolist())

    @property
    def lane_names(self) -> tuple[str, ...]:
        """The workers' names, with their speed where these differ."""
        names = self.lanes or tuple(f"worker {w}" for w in range(self.workers))
        if (self.speeds == self.speeds[0]).all():
            return names
        return tuple(f"{name} (×{speed:.3g})" for name, speed in zip(names, self.speeds, strict=True))

    def _lane(self) -> Integers:
        return self.worker

    def _marks(self) -> dict[str, float]:
        return {"lower bound": self.lower_bound}

    def _bars(self, workers: int, waits: bool) -> list[Bar]:
        labels = self.labels or tuple(map(str, range(len(self))))
        return [Bar(a.worker, a.start, a.finish, labels[a.task]) for a in self.assignments]

    @property
    def _name(self) -> str:
        policy = f" ({self.policy})" if self.policy else ""
        return f"Schedule of {some(len(self), 'task')} on {some(self.workers, 'worker')}{policy}"

    @property
    def _figures(self) -> str:
        seconds = f"makespan {duration(self.makespan)}, at least {duration(self.lower_bound)}"
        return f"{seconds}, efficiency {100 * self.efficiency:.0f} %"
