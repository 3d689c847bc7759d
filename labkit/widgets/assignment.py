"""Assignment widget, 𝒮ᵢ by hand: tasks that somebody moves from worker to worker; makespan and bound follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from labkit.checks import Floats, one_of, whole
from labkit.errors import ScheduleError
from labkit.tasks.schedule import Schedule, schedule
from labkit.text import duration
from labkit.widgets.gantt import Gantt
from labkit.widgets.view import Computed, Frame, View, choice, lines, seconds, whole_slider

MEAN_COST = 0.2  # seconds
MOST_TASKS, MOST_WORKERS = 16, 5
_EQUAL = 1e-9  # seconds that only rounding makes


def in_blocks(costs: Floats, workers: int) -> list[int]:
    """The first tasks to the first worker, and so on, as many to each: what looks fair, and is not."""
    return [task * workers // len(costs) for task in range(len(costs))]


def _checked(costs: Sequence[float], workers: int) -> Floats:
    if isinstance(costs, Mapping):
        raise ScheduleError("costs are a dict: give their values, the seconds of each task in order.")
    schedule(costs, workers)  # raises ScheduleError
    return np.asarray(costs, dtype=np.float64)


def _by_policy(policy: str, costs: Floats, workers: int) -> list[int]:
    placed: list[int] = schedule(costs, workers, policy).worker.tolist()
    return placed


STARTS: dict[str, Callable[[Floats, int], list[int]]] = {
    "equal blocks": in_blocks,
    "all on one": lambda costs, workers: [0] * len(costs),
    **{policy: partial(_by_policy, policy) for policy in ("round-robin", "list", "lpt")},
}


@dataclass(frozen=True)
class ByHand(Computed):
    """The schedule of tasks that stay where they were put; `longest_first` is the makespan of that policy, seconds."""

    schedule: Schedule
    longest_first: float

    @property
    def ok(self) -> bool:
        return self.schedule.makespan <= self.longest_first + _EQUAL

    @property
    def latex(self) -> str:
        """Each worker's time, and the makespan above its lower bound."""
        s = self.schedule
        times = ",\\; ".join(seconds(float(it)) for it in s.busy)
        return lines(
            rf"\sum_{{j \in \mathcal{{S}}_i}} p_j &= {times}",
            rf"C_{{\max}} = \max_i \sum_{{j \in \mathcal{{S}}_i}} p_j &= {seconds(s.makespan)} \;\ge\; "
            rf"\max\Bigl(\tfrac{{1}}{{m}} \sum_j p_j,\ \max_j p_j\Bigr) = {seconds(s.lower_bound)}",
        )

    @property
    def sentence(self) -> str:
        s = self.schedule
        last, first = int(s.busy.argmax()), int(s.busy.argmin())
        bound, lpt = duration(s.lower_bound), duration(self.longest_first)
        if s.makespan <= s.lower_bound + _EQUAL:
            return f"All is done after {duration(s.makespan)}, and no assignment ends sooner."
        if self.ok:
            return f"All is done after {duration(s.makespan)}, as soon as by longest first or sooner; at least {bound}."
        over = s.makespan / s.lower_bound - 1
        return (
            f"All is done after {duration(s.makespan)}, {over:.0%} above the bound of {bound}; longest first needs "
            f"{lpt}. Worker {last} ends last, worker {first} first: move a task."
        )


def compute(worker: Sequence[int], costs: Sequence[float], workers: int = 3) -> ByHand:
    """Run each task of `costs` seconds on its `worker` (from 0), one after the other in their order.

    Raises ScheduleError where a task has no worker, or costs are no finite seconds.

    >>> made = compute([0, 0, 1], costs=[3, 1, 2], workers=2)
    >>> made.schedule.makespan, made.schedule.lower_bound
    (4.0, 3.0)
    """
    best = schedule(costs, workers, "lpt")
    price = np.asarray(costs, dtype=np.float64)
    if len(worker) != len(price):
        raise ScheduleError(f"{len(worker)} workers for {len(price)} tasks; give each task its worker.")
    who = np.array([whole(it, "a task's worker", ScheduleError, least=0) for it in worker], dtype=np.int64)
    if len(who) and who.max() >= workers:
        raise ScheduleError(f"worker {int(who.max())} has a task, but the workers are 0 … {workers - 1}.")
    finish = np.zeros(len(price))
    for lane in range(workers):
        finish[who == lane] = price[who == lane].cumsum()
    placed = who, finish - price, finish
    made = Schedule(*placed, speeds=np.ones(workers), policy="by hand", lower_bound=best.lower_bound)
    return ByHand(made, best.makespan)


def assignment(
    costs: Sequence[float] | None = None, *, start: str = "equal blocks", workers: int = 3, seed: int = 2
) -> AssignmentView:
    """A Gantt chart whose tasks are moved to other workers, with the mouse or the arrow keys.

    `costs` in seconds fixes the tasks; *from* is an assignment to begin with. Raises SettingError for one that there is
    not, and ScheduleError for costs that cannot be.

    >>> view = assignment()
    >>> view.move(task=0, worker=2)
    >>> view.plan
    [2, 0, 0, 1, 1, 1, 2, 2, 2]
    """
    return AssignmentView(costs, start, workers, seed)


class AssignmentView(View):
    """The view of `assignment`; `move` puts a task on another worker, `plan` is who has which, `made` the schedule."""

    def __init__(self, costs: Sequence[float] | None, start: str, workers: int, seed: int) -> None:
        workers = whole(workers, "workers")
        self._fixed = None if costs is None else _checked(costs, workers)
        tasks = 9 if self._fixed is None else len(self._fixed)
        controls = {
            "start": choice(list(STARTS), one_of(start, "start", STARTS), "from", "An assignment to begin with"),
            "tasks": whole_slider(tasks, 1, max(tasks, MOST_TASKS), "tasks", "How many tasks there are"),
            "workers": whole_slider(workers, 1, max(workers, MOST_WORKERS), "workers", "How many run at the same time"),
            "seed": whole_slider(seed, 0, 20, "seed", "Another seed, other costs"),
        }
        for fixed in ("tasks", "seed"):
            controls[fixed].disabled = costs is not None
        self.gantt = Gantt()
        self._begun: dict[str, object] = {}
        self.gantt.observe(self._changed, "worker")
        super().__init__("assignment", controls, self._frame, adjust=self._begin, extra=(self.gantt,))

    @property
    def costs(self) -> Floats:
        """What the tasks cost, [tasks] seconds."""
        if self._fixed is not None:
            return self._fixed
        tasks, seed = self.controls["tasks"].value, self.controls["seed"].value
        drawn = np.exp(0.7 * np.random.default_rng([seed, 2]).standard_normal(tasks))
        costs: Floats = (MEAN_COST * tasks * drawn / drawn.sum()).round(2)
        return costs

    @property
    def plan(self) -> list[int]:
        """The worker of each task, as they lie now."""
        return list(self.gantt.worker)

    @property
    def made(self) -> ByHand:
        """The schedule as the tasks lie now."""
        return compute(self.plan, self.costs.tolist(), self.controls["workers"].value)

    def move(self, task: int, worker: int) -> None:
        """Put a task on a worker; raises ScheduleError where there is no such task or worker."""
        task = whole(task, "task", ScheduleError, least=0)
        if task >= len(self.plan):
            raise ScheduleError(f"there is no task {task}: the tasks are 0 … {len(self.plan) - 1}.")
        moved = [*self.plan[:task], worker, *self.plan[task + 1 :]]
        compute(moved, self.costs.tolist(), self.controls["workers"].value)
        self.gantt.worker = moved

    def _begin(self) -> None:
        """Lay the tasks as the assignment to begin with does, when another one, or other tasks, are chosen."""
        if self._begun != self.settings:
            self._begun = self.settings
            start, workers = self.controls["start"].value, self.controls["workers"].value
            self.gantt.show(self.costs, STARTS[start](self.costs, workers), workers)

    def _frame(self, **settings: object) -> Frame:
        made = self.made
        self.gantt.mark(made.schedule)
        return Frame((made.schedule.plot(),), made.latex, made.sentence, made.ok)
