"""Gantt: tasks as bars on the lanes of workers, which whoever looks at them can move to another lane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anywidget
import traitlets

from labkit.checks import Floats
from labkit.plots.style import ALARM, CYCLE, ink_on
from labkit.tasks.schedule import Schedule
from labkit.translation.translate import tr

_HELP = "Tasks on workers. An arrow key up or down moves the task that has the focus."


class Gantt(anywidget.AnyWidget):
    """Bars of `costs` seconds, each on the lane of its `worker`; drag one, or focus it and press an arrow key.

    `worker` changes with it. `makespan` and `bound` in seconds are drawn as lines. The picture that the view around it
    shows where there are no widgets is put away on the page.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = ".widget-vbox:has(> .widget-hbox .labkit-gantt) > img.widget-image { display: none }"
    costs = traitlets.List(traitlets.Float()).tag(sync=True)
    worker = traitlets.List(traitlets.Int()).tag(sync=True)
    tasks = traitlets.List(traitlets.Unicode()).tag(sync=True)
    lanes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    makespan = traitlets.Float().tag(sync=True)
    bound = traitlets.Float().tag(sync=True)
    marks = traitlets.Dict(traitlets.Unicode()).tag(sync=True)
    help = traitlets.Unicode().tag(sync=True)
    colours = traitlets.List(traitlets.Unicode()).tag(sync=True)
    inks = traitlets.List(traitlets.Unicode()).tag(sync=True)  # of words on them
    alarm = traitlets.Unicode(ALARM).tag(sync=True)

    def __init__(self) -> None:
        super().__init__(
            layout={"width": "792px", "max_width": "100%"},
            colours=list(CYCLE),
            inks=[*map(ink_on, CYCLE)],
            help=tr(_HELP),
        )

    def show(self, costs: Floats, worker: Sequence[int], workers: int) -> None:
        """Show other tasks."""
        with self.hold_sync():
            self.costs, self.worker = costs.tolist(), list(worker)
            self.tasks = [tr(f"task {task}, {cost:.3g} s") for task, cost in enumerate(self.costs)]
            self.lanes = [tr(f"worker {lane}") for lane in range(workers)]

    def mark(self, schedule: Schedule) -> None:
        """Draw the lines for the present assignment."""
        with self.hold_sync():
            self.makespan, self.bound = schedule.makespan, schedule.lower_bound
            self.marks = {
                "makespan": f"{tr('makespan')} {self.makespan:.3g} s",
                "bound": f"{tr('lower bound')} {self.bound:.3g} s",
            }
