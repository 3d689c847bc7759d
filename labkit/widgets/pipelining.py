"""Pipeline widget, bubble = (p − 1)/(m + p − 1): tables of ticks, of known schedules or drawn cell by cell."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import ipywidgets as widgets

from labkit.checks import number, one_of, whole
from labkit.costs.pipelines import Fault, Op, PipelineSketch, PipelineTable, bubble
from labkit.errors import LabkitError, SettingError
from labkit.plots.panel import Picture
from labkit.plots.ticks import COLOURS, NAMES
from labkit.text import percent
from labkit.translation.translate import tr
from labkit.widgets.view import Computed, View, choice, frames, lines, percent as share, slider, whole_slider

OWN = "draw your own"
SCHEDULES = {"GPipe": "gpipe", "1F1B": "1f1b", "zero bubble": "zero-bubble", OWN: OWN}
MOST = 36  # ticks of a table that is drawn


@dataclass(frozen=True)
class Piping(Computed):
    """A table of ticks, perhaps unfinished, beside the targets: the share of idle ticks, and open microbatches."""

    sketch: PipelineSketch
    faults: tuple[Fault, ...]
    idle: float
    most: int

    @property
    def ok(self) -> bool:
        return not self.faults and self.sketch.bubble < self.idle and max(self.sketch.open) <= self.most

    @property
    def latex(self) -> str:
        """The bubble as counted, and by the law of GPipe and 1F1B."""
        it = self.sketch
        ticks, p, m = len(it.ticks[0]), it.stages, max(1, it.microbatches)
        empty = sum(op is None for row in it.ticks for op in row)
        counted = rf"\frac{{{empty}}}{{{p} \cdot {ticks}}} = {share(it.bubble)}"
        law = rf"\frac{{p - 1}}{{m + p - 1}} = \frac{{{p - 1}}}{{{m + p - 1}}} = {share(bubble(p, m))}"
        opened = r",\, ".join(map(str, it.open))
        return lines(
            rf"\text{{bubble}} &= \frac{{\text{{empty ticks}}}}{{p \cdot \text{{ticks}}}} = {counted}, \qquad {law}",
            rf"\text{{open}} &= {opened} \quad\text{{microbatches on the stages, at most}}",
        )

    @property
    def sentence(self) -> str:
        if self.faults:
            more = f" ({len(self.faults) - 1} more like it)" if len(self.faults) > 1 else ""
            return f"Not a schedule yet: {self.faults[0].sentence}{more}"
        it, kept = self.sketch, max(self.sketch.open)
        wrong = []
        if it.bubble >= self.idle:
            wrong.append(f"stages stand still for {percent(it.bubble)} of the time, where less than "
                         f"{percent(self.idle)} is wanted")  # fmt: skip
        if kept > self.most:
            wrong.append(f"one of them keeps {kept} microbatches open, and has memory for {self.most}")
        if wrong:
            return f"{', and '.join(wrong)}.".capitalize()
        return f"Done: a bubble of {percent(it.bubble)}, and at most {kept} open microbatches."


def compute(
    schedule: str = "gpipe",
    stages: int = 3,
    microbatches: int = 4,
    idle: float = 0.2,
    most: int = 3,
    table: str = "",
) -> Piping:
    """The table of a known schedule, or the one that is written in `table` (a line for each stage: F0 F1 · B0).

    `idle` is the share of ticks below which the bubble should stay, `most` how many microbatches a stage may keep open.
    Raises SettingError for what cannot be.

    >>> compute("gpipe", stages=4, microbatches=4).sketch.bubble == 3 / 7
    True
    """
    one_of(schedule, "schedule", tuple(SCHEDULES.values())), whole(most, "most"), number(idle, "idle", most=1)
    whole(stages, "stages"), whole(microbatches, "microbatches")
    if schedule != OWN:
        return Piping(PipelineTable.of(schedule, stages, microbatches), (), idle, most)
    sketch = PipelineSketch.read(table)
    if sketch.stages != stages:
        raise SettingError(f"The table has {sketch.stages} lines for {stages} stages: write one line for each.")
    return Piping(sketch, _with_missing(sketch, microbatches), idle, most)


def _with_missing(sketch: PipelineSketch, microbatches: int) -> tuple[Fault, ...]:
    """The faults of a sketch, those included that microbatches are nowhere in it yet."""
    found = sketch.faults
    if sketch.microbatches < microbatches:
        said = f"microbatch {sketch.microbatches} of {microbatches} has not been through any stage."
        found = (*found, Fault(0, None, said))
    return found


def pipeline(schedule: str = "gpipe", stages: int = 3, microbatches: int = 4) -> PipelineView:
    """Tables of ticks by schedule, stages and microbatches, or drawn: press the cells, or write the lines of the table.

    A cell goes through what the stage could do in that tick: forward, back, nothing. `view.table` is the finished
    table, as `Pipeline(microbatches, view.table)` takes it. It opens on GPipe, which misses both targets.

    >>> view = pipeline()
    >>> view.controls["schedule"].value = "1f1b"
    >>> view.table.open
    (3, 2, 1)
    """
    return PipelineView(schedule, stages, microbatches)


class PipelineView(View):
    """The view of `pipeline`; `cells` are the buttons of the table that is drawn."""

    def __init__(self, schedule: str, stages: int, microbatches: int) -> None:
        self._pool: list[list[widgets.Button]] = []
        self.clear = widgets.Button(description="Clear the table", tooltip="Begin with an empty table of your own")
        self.clear.on_click(lambda _: self._write(self._empty()))
        controls = {
            "schedule": choice(SCHEDULES.items(), schedule, "schedule", "Who computes which microbatch when"),
            "stages": whole_slider(stages, 1, 6, "stages", "p: parts of the model, one after the other"),
            "microbatches": whole_slider(microbatches, 1, 12, "microbatches", "m: parts of a batch"),
            "idle": slider(0.2, 0.05, 0.5, 0.01, "bubble <", "Target: the share of time that stages stand still"),
            "most": whole_slider(3, 1, 12, "open ≤", "Target: microbatches whose activations a stage keeps"),
            "table": widgets.Textarea(value="F0 B0", description="table", rows=4, continuous_update=False,
                                      tooltip="A line for each stage, such as F0 F1 · B0 · B1"),
        }  # fmt: skip
        self._shape, self._stages = (0, 0), stages
        self._grid = widgets.GridBox([], layout=widgets.Layout(max_width="816px", overflow="auto"))
        super().__init__("pipeline", controls, frames(compute, _ticks), adjust=self._enable, extra=(self.clear,))
        controls["table"].layout.width = "auto"
        controls["table"].layout.flex = "1 1 100%"
        above, *below = self.children  # type: ignore[has-type]
        self.children = (above, self._grid, *below)

    @property
    def cells(self) -> list[list[widgets.Button]]:
        """The buttons that are shown, a row for each stage."""
        stages, ticks = self._shape
        return [row[:ticks] for row in self._pool[:stages]]

    @property
    def table(self) -> PipelineTable:
        """The table as it is drawn; SettingError with its first fault where it cannot be carried out."""
        made = compute(**self.settings)
        return PipelineTable(made.sketch.ticks)

    def _enable(self) -> None:
        """Lay out the buttons for the table that is drawn; with a known schedule write that one, to go on from."""
        now, drawn = self.settings, self.controls["schedule"].value == OWN
        if not drawn:
            made = compute(**now).sketch
            self.controls["table"].value = _written(made)
        elif now["stages"] != self._stages:
            rows = [*self.controls["table"].value.splitlines(), *["·"] * now["stages"]]
            self.controls["table"].value = "\n".join(rows[: now["stages"]])
        self._stages = now["stages"]
        self.controls["table"].disabled = self.clear.disabled = not drawn
        self._grid.layout.display = "grid" if drawn else "none"
        if drawn:
            self._lay_out()

    def _empty(self) -> str:
        return "\n".join(["·"] * self.controls["stages"].value)

    def _lay_out(self) -> None:
        """A button for each cell, named as what is in it."""
        try:
            sketch = PipelineSketch.read(self.controls["table"].value)
        except LabkitError:  # of which the sentence tells
            return
        least = 2 * (self.controls["microbatches"].value + sketch.stages - 1)  # of GPipe's and 1F1B's tables
        ticks = min(MOST, max(len(sketch.ticks[0]) + 2, least))
        if not self._pool:
            self._make_cells()
        if (sketch.stages, ticks) != self._shape:
            self._shape = sketch.stages, ticks
            self._grid.layout.grid_template_columns = f"repeat({ticks}, 36px)"
            for stage, row in enumerate(self._pool):
                for tick, cell in enumerate(row):
                    cell.layout = self._shown if stage < sketch.stages and tick < ticks else self._hidden
        for stage, row in enumerate(self.cells):
            for tick, cell in enumerate(row):
                op = sketch.ticks[stage][tick] if tick < len(sketch.ticks[0]) else None
                said = "·" if op is None else str(op)
                if cell.description != said or not cell.tooltip:
                    cell.description, cell.style = said, self._styles["" if op is None else op.kind]
                    cell.tooltip = tr(f"stage {stage}, tick {tick}: {'nothing' if op is None else NAMES[op.kind]}")

    def _make_cells(self) -> None:
        """All buttons there can be, once: a front end that is handed new ones while it draws may keep the old."""
        small = {"width": "34px", "height": "26px", "padding": "0", "margin": "1px"}
        self._shown, self._hidden = widgets.Layout(**small), widgets.Layout(display="none")
        self._styles = {kind: widgets.ButtonStyle(button_color=COLOURS.get(kind)) for kind in ("", *COLOURS)}
        same = {"layout": self._hidden, "style": self._styles[""]}
        stages = range(self.controls["stages"].max)
        self._pool = [[widgets.Button(description="·", **same) for _ in range(MOST)] for _ in stages]
        for stage, row in enumerate(self._pool):
            for tick, cell in enumerate(row):
                cell.on_click(partial(self._press, stage, tick))
        self._grid.children = [cell for row in self._pool for cell in row]

    def _press(self, stage: int, tick: int, _: Any) -> None:
        """Put the next thing that the stage could do in that tick into its cell."""
        try:
            sketch = PipelineSketch.read(self.controls["table"].value)
        except LabkitError:
            return
        rows = [list(row) + [None] * max(0, tick + 1 - len(row)) for row in sketch.ticks]
        was, rows[stage][tick] = rows[stage][tick], None
        could: list[Op | None] = [*PipelineSketch(tuple(map(tuple, rows))).ready(stage, tick), None]
        could = [op for op in could if op is None or op.microbatch < self.controls["microbatches"].value]
        rows[stage][tick] = could[(could.index(was) + 1) % len(could)] if was in could else could[0]
        self._write(_written(PipelineSketch(tuple(map(tuple, rows)))))

    def _write(self, text: str) -> None:
        self.controls["table"].value = text


def _written(sketch: PipelineSketch) -> str:
    """The lines of a table, in columns, without empty ticks at the end."""
    used = max((t + 1 for row in sketch.ticks for t, op in enumerate(row) if op is not None), default=1)
    wide = max((len(str(op)) for row in sketch.ticks for op in row if op is not None), default=1)
    cells = [["·" if op is None else str(op) for op in row[:used]] for row in sketch.ticks]
    return "\n".join(" ".join(word.ljust(wide) for word in row).rstrip() for row in cells)


def _ticks(made: Piping) -> Picture:
    return made.sketch.plot(most=made.most)
