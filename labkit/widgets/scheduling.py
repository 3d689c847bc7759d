"""Schedule widget, 𝒮 = ∪ 𝒮ᵢ: policies, uneven workers, dependencies; the plan beside its bound and beside reality."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np

from labkit.checks import Integers, numbers
from labkit.errors import LabkitError, ScheduleError
from labkit.tasks.schedule import Schedule, schedule as plan
from labkit.widgets.buttons import on_press
from labkit.widgets.pictures import with_links
from labkit.widgets.view import Computed, Frame, View, chain, choice, lines, percent, seconds, slider, whole_slider

if TYPE_CHECKING:
    from labkit.cluster.job import Job
    from labkit.cluster.lab import Lab

POLICIES = ("lpt", "list", "fifo", "heft", "stealing")
MEAN_COST = 0.2  # seconds of a task: long beside Dask's overhead, short enough to be run for real


@dataclass(frozen=True)
class Planning(Computed):
    """A predicted schedule of tasks that cost `costs` seconds each; and the longest chain of them, in seconds."""

    schedule: Schedule
    costs: tuple[float, ...]
    after: tuple[tuple[int, ...], ...]

    @property
    def latex(self) -> str:
        """𝒮 and its sizes, the makespan above its lower bound, and the efficiency."""
        s = self.schedule
        counts = [str(count) for count in np.bincount(s.worker, minlength=s.workers)]
        work, speed = sum(self.costs), float(s.speeds.sum())
        longest = r"\text{longest path}" if any(self.after) else r"\text{longest task}"
        bound = rf"\max\Bigl(\tfrac{{\sum_j p_j}}{{\sum_i s_i}},\ {longest}\Bigr)"
        return lines(
            rf"\mathcal{{S}} &= \bigcup_{{i=0}}^{{{s.workers - 1}}} \mathcal{{S}}_i, \qquad "
            rf"|\mathcal{{S}}| = {chain(counts, '+')} = {len(s)}",
            rf"C_{{\max}} &= {seconds(s.makespan)} \;\ge\; {bound} = {seconds(s.lower_bound)}",
            rf"\text{{efficiency}} &= \frac{{\sum_j p_j}}{{C_{{\max}} \sum_i s_i}} = "
            rf"\frac{{{work:.3g}}}{{{s.makespan:.3g} \cdot {speed:.3g}}} = {percent(s.efficiency)}",
        )

    @property
    def sentence(self) -> str:
        s = self.schedule
        over = s.makespan / s.lower_bound - 1 if s.lower_bound else 0.0
        apart = "no plan can end sooner" if over < 5e-4 else f"{over:.1%} above the lower bound"
        return f"Predicted: {apart}; the workers wait {s.idle.sum() / (s.makespan * s.workers or 1):.0%} of the time."


def compute(
    tasks: int = 12,
    workers: int = 3,
    policy: str = "lpt",
    spread: float = 0.6,
    uneven: float = 0.0,
    dependencies: bool = False,
    transfer: float = 0.0,
    seed: int = 0,
    costs: Sequence[float] | None = None,
) -> Planning:
    """Plan `tasks` tasks of mean cost 0.2 s on `workers` workers.

    `spread` is the standard deviation of the costs' logarithm; `uneven` takes the last worker's speed to 1 − uneven
    (evenly from the first worker's 1); with `dependencies` most tasks wait for one or two earlier ones, whose results
    take `transfer` seconds to another worker; `costs` (seconds) replaces the drawn ones. Raises ScheduleError.

    >>> compute(tasks=6, workers=2, spread=0.0).schedule.efficiency
    1.0
    """
    if costs is None:
        drawn = np.exp(spread * np.random.default_rng([seed, 0]).standard_normal(tasks))
        costs = (MEAN_COST * tasks * drawn / drawn.sum()).tolist()
    after = _graph(len(costs), seed) if dependencies else ((),) * len(costs)
    speeds = np.linspace(1.0, 1.0 - uneven, workers).tolist() if workers > 1 else [1.0]
    cost = transfer if dependencies else 0.0
    made = plan(costs, workers, policy, speeds=speeds, after=after if dependencies else None, transfer=cost, seed=seed)
    return Planning(made, tuple(costs), after)


def _graph(tasks: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """For each task the zero to two tasks it waits for, among the four before it."""
    rng = np.random.default_rng([seed, 1])
    near = [np.arange(max(0, task - 4), task) for task in range(tasks)]
    return tuple(tuple(sorted(rng.permutation(some)[: rng.integers(0, 3)].tolist())) for some in near)


def schedule(*, lab: Lab | None = None, measured: Schedule | None = None, costs: Sequence[float] | None = None) -> View:
    """Sliders over a schedule: Gantt chart, makespan above its lower bound, efficiency.

    `costs` in seconds fixes the tasks; a `measured` schedule (`job.schedule`) fixes them to what was measured, and is
    drawn above the prediction. With `lab` a button sends the plan's tasks, as sleeps, to its real workers, in the
    plan's order, and draws what they did above what was predicted. Raises ScheduleError for costs that cannot be.

    >>> view = schedule(costs=[3, 3, 2, 2, 2])
    >>> view.controls["workers"].value = 2
    >>> "C_{\\\\max} &= 7" in view.formula.value
    True
    """
    return ScheduleView(lab, measured, costs)


class ScheduleView(View):
    """The view of `schedule`; `measured` is the schedule that real workers did, or None; `button` runs it on them."""

    def __init__(self, lab: Lab | None, measured: Schedule | None, costs: Sequence[float] | None) -> None:
        self.measured = measured
        self.ran: dict[str, Any] | None = None  # the settings that were measured; None: whatever they are
        if costs is None and measured is not None:
            costs = ((measured.finish - measured.start) * measured.speeds[measured.worker]).tolist()
        self.costs = None if costs is None else numbers(costs, "costs", ScheduleError).tolist()
        self.button = widgets.Button(
            description="Run it", icon="play", tooltip="Send these tasks to the lab's workers, and measure them"
        )
        workers = measured.workers if measured else len(lab.workers) if lab else 3
        controls = _controls(len(self.costs or ()) or 12, workers)
        for fixed in ("tasks", "spread"):
            controls[fixed].disabled = self.costs is not None
        if lab is not None:
            controls["workers"].disabled = True
            on_press(self.button, lambda: self._run(lab))
        super().__init__("schedule", controls, self._frame, adjust=self._enable, extra=(self.button,) if lab else ())

    def _enable(self) -> None:
        self.controls["transfer"].disabled = not self.controls["dependencies"].value

    def _compute(self, **settings: Any) -> Planning:
        return compute(**settings, costs=self.costs)

    def _frame(self, **settings: Any) -> Frame:
        made = self._compute(**settings)
        measured = self.measured if self.ran in (None, settings) else None
        said = made.sentence
        if measured is not None:
            said += f" Measured: {measured.makespan:.3g} s where {made.schedule.makespan:.3g} s were predicted."
        s = made.schedule
        picture = with_links(s.plot(beside=measured), s.start, s.finish, s.worker, made.after)
        return Frame((picture,), made.latex, said)

    def _run(self, lab: Lab) -> None:
        """Send the tasks as sleeps, in the order in which the plan begins them, and watch until they are done."""
        settings = self.settings
        try:
            if settings["uneven"] or settings["dependencies"]:
                raise ScheduleError(
                    "The lab's workers are equally fast and take tasks as they come: "
                    "set uneven to 0 and dependencies off, then run it."
                )
            made = self._compute(**settings)
            order = np.argsort(made.schedule.start, kind="stable")
            job = lab.map(time.sleep, [made.costs[task] for task in order])
            job._repr_mimebundle_()  # shown, as far as the job is concerned: here its progress is in the sentence
        except LabkitError as error:
            self.say(str(error), alarm=True)
            return
        self.button.disabled = True
        self.keep_calling(lambda: self._look(job, order, settings))

    def _look(self, job: Job, order: Integers, settings: dict[str, Any]) -> bool:
        """Show how far the job is; at its end draw what it did. Returns whether to look again."""
        if not job.done:
            self.say(f"Running on the workers: {job.progress}.")
            return True
        self.button.disabled = False
        try:
            found = job.schedule
        except LabkitError as error:
            self.say(str(error), alarm=True)
            return False
        place = np.argsort(order)  # the job's items are in the plan's order, the tasks in their own
        worker, start, finish = found.worker[place], found.start[place], found.finish[place]
        self.measured = replace(
            found, worker=worker, start=start, finish=finish, labels=None, policy=settings["policy"]
        )
        self.ran = settings
        self.refresh()
        return False


def _controls(tasks: int, workers: int) -> dict[str, widgets.Widget]:
    return {
        "tasks": whole_slider(tasks, 1, max(60, tasks), "tasks", "How many tasks there are"),
        "workers": whole_slider(workers, 1, max(12, workers), "workers", "How many run at the same time"),
        "policy": choice(POLICIES, "lpt", "policy", "Who decides which task goes where"),
        "spread": slider(0.6, 0.0, 1.5, 0.1, "spread", "How unequal the tasks' costs are"),
        "uneven": slider(0.0, 0.0, 0.8, 0.1, "uneven", "How much slower the last worker is than the first"),
        "dependencies": widgets.Checkbox(
            False, description="dependencies", tooltip="Most tasks wait for one or two earlier ones"
        ),
        "transfer": slider(0.0, 0.0, 0.4, 0.05, "transfer", "Seconds a result takes to another worker"),
        "seed": whole_slider(0, 0, 20, "seed", "Another seed, other costs and dependencies"),
    }
