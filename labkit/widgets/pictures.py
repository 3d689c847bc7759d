"""What only widgets draw: columns beside their outlines, a timeline at one moment, and who waits for whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from labkit.plots.bars import COLOURS
from labkit.plots.panel import CYCLE, GREY, INK, Panel, Picture, text_width
from labkit.text import unit_for

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
_ALARM, _LATER = CYCLE[2], "#e9ecee"


def columns(
    solid: Sequence[float],
    hollow: Sequence[float],
    labels: Sequence[str],
    *,
    names: tuple[str, str],
    xlabel: str,
    ylabel: str,
    note: str = "",
    title: str = "",
) -> Picture:
    """Shares (0 to 1) as columns, one for each label: `solid`, with the outline of `hollow` around it.

    What is lower by more than a tenth has the colour of alarm; a column of height zero has a × on the floor.
    """
    x, y = np.arange(len(labels), dtype=float), np.asarray(solid, dtype=float)
    panel = Panel(1.55, (-0.6, len(labels) - 0.4), (0.0, 1.0), title=title, left=0.62)
    panel.y_axis(ylabel)
    fell = np.subtract(hollow, y) > 0.1
    for some, colour in ((~fell, CYCLE[0]), (fell, _ALARM)):
        panel.boxes(x[some] - 0.27, x[some] + 0.27, 0.0, y[some], facecolors=colour, zorder=2)
    panel.boxes(x - 0.36, x + 0.36, 0.0, hollow, facecolors="none", edgecolors=INK, linewidths=1.1, zorder=3)
    for at, label in zip(x, labels, strict=True):
        panel.word(label, at, 0.0, dy=-9, align="centre", colour=GREY)
    for at in x[y == 0.0]:
        panel.word("×", at, 0.0, dy=8, align="centre", size=12, colour=_ALARM)
    panel.word(xlabel, panel.xlim[1], 0.0, dy=-23, align="right", colour=GREY)
    panel.legend([(CYCLE[0], False, names[0]), (INK, True, names[1])], note)
    return panel.finish(title or f"{ylabel} by {xlabel}: {names[0]} beside {names[1]}")


def timeline_at(
    start: Floats, finish: Floats, moment: float, common: int, *, title: str = "", note: str = "", alt: str = ""
) -> Picture:
    """Steps of workers, [workers, steps] seconds, as they stand at a `moment`; the first `common` are finished by all.

    A dark line runs through the ends of the last step that is finished by all: the frontier.
    """
    workers, steps = finish.shape
    names = [f"worker {worker}" for worker in range(workers)]
    span = float(finish.max()) or 1.0
    left = 0.2 + max(map(text_width, names))
    panel = Panel(max(0.5, 0.34 * workers), (0.0, span), (workers - 0.5, -0.5), title=title, left=left)
    panel.rows(names)
    scale, unit = unit_for(span)
    panel.x_axis(unit, scale)
    lane = np.repeat(np.arange(workers), steps).reshape(workers, steps)
    shared = np.broadcast_to(np.arange(steps) < common, finish.shape)
    own = (finish <= moment) & ~shared
    kinds = {
        "finished by all": (shared, CYCLE[0]),
        "by this worker": (own, CYCLE[9]),
        "not yet": (~shared & ~own, _LATER),
    }
    style = {"edgecolors": "white", "linewidths": 0.8, "zorder": 2}
    for some, colour in kinds.values():
        panel.boxes(start[some], finish[some], lane[some] - 0.38, lane[some] + 0.38, facecolors=colour, **style)
    before = np.pad(finish[:, :-1], ((0, 0), (1, 0)))
    panel.boxes(before, start, lane - 0.06, lane + 0.06, facecolors=COLOURS["wait"], zorder=1)
    for (worker, step), length in np.ndenumerate(finish - start):
        if panel.fits(str(step), float(length), 0.76):
            panel.word(str(step), float(finish[worker, step] - length / 2), worker, align="centre")
    _frontier(panel, finish[:, common - 1] if common else np.zeros(workers))
    panel.mark("moment", moment)
    keys = [(colour, False, name) for name, (_, colour) in kinds.items()]
    panel.legend([*keys, (COLOURS["wait"], False, "waiting"), (INK, False, "frontier")], note)
    return panel.finish(alt or title)


def _frontier(panel: Panel, ends: Floats) -> None:
    """A stair through the lanes: down at each lane's end, across between two lanes."""
    stairs = [point for lane, x in enumerate(ends.tolist()) for point in ((x, lane - 0.5), (x, lane + 0.5))]
    panel.lines([stairs], colors=INK, linewidths=2.2, zorder=4)


def with_links(
    picture: Picture, start: Floats, finish: Floats, lane: Integers, after: Sequence[Sequence[int]]
) -> Picture:
    """Add to a Gantt chart a thin line from the end of every task to the start of each task that waits for it."""
    links = [(first, task) for task, needed in enumerate(after) for first in needed]
    if links:
        a, b = np.transpose(links)
        gap = np.full(len(links), np.nan)
        x, y = (np.stack(ends, -1).ravel() for ends in ((finish[a], start[b], gap), (lane[a], lane[b], gap)))
        picture.figure.axes[0].plot(x, y, color=INK, linewidth=0.8, alpha=0.55, zorder=3)
    return picture
