"""What only widgets draw: columns beside their outlines, a timeline at one moment, and who waits for whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labkit.checks import Floats, Integers
from labkit.plots.bars import share_panel, time_panel
from labkit.plots.panel import Picture
from labkit.plots.style import ADJOINING, ALARM, COLOURS, CYCLE, HOLLOW, INK

_LATER = "#e9ecee"


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
    panel = share_panel(ylabel, (-0.6, len(labels) - 0.4), title=title)
    panel.x_axis(xlabel, list(zip(x, labels, strict=True)), grid=False)
    colours = np.where(np.subtract(hollow, y) > 0.1, ALARM, CYCLE[0])
    panel.boxes(x - 0.27, x + 0.27, 0.0, y, facecolors=colours, zorder=2)
    panel.boxes(x - 0.36, x + 0.36, 0.0, hollow, **HOLLOW)
    for at in x[y == 0.0]:
        panel.word("×", at, 0.0, dy=8, align="centre", size=12, colour=ALARM)
    panel.legend([(CYCLE[0], False, names[0]), (INK, True, names[1])], note)
    return panel.finish(title or f"{ylabel} by {xlabel}: {names[0]} beside {names[1]}")


def timeline_at(
    start: Floats, finish: Floats, moment: float, common: int, *, title: str = "", note: str = "", alt: str = ""
) -> Picture:
    """Steps of workers, [workers, steps] seconds, as they stand at a `moment`; the first `common` are finished by all.

    A dark line runs through the ends of the last step that is finished by all: the frontier.
    """
    workers, steps = finish.shape
    panel = time_panel([f"worker {worker}" for worker in range(workers)], float(finish.max()), title=title)
    lane = np.repeat(np.arange(workers), steps).reshape(workers, steps)
    shared = np.broadcast_to(np.arange(steps) < common, finish.shape)
    own = (finish <= moment) & ~shared
    kinds = {
        "finished by all": (shared, CYCLE[0]),
        "by this worker": (own, CYCLE[9]),
        "not yet": (~shared & ~own, _LATER),
    }
    for some, colour in kinds.values():
        panel.boxes(start[some], finish[some], lane[some] - 0.38, lane[some] + 0.38, facecolors=colour, **ADJOINING)
    before = np.pad(finish[:, :-1], ((0, 0), (1, 0)))
    panel.boxes(before, start, lane - 0.06, lane + 0.06, facecolors=COLOURS["wait"], zorder=1)
    for (worker, step), length in np.ndenumerate(finish - start):
        if panel.fits(str(step), float(length), 0.76):
            panel.word(str(step), float(finish[worker, step] - length / 2), worker, align="centre")
    ends = finish[:, common - 1] if common else np.zeros(workers)
    stairs = [point for row, x in enumerate(ends.tolist()) for point in ((x, row - 0.5), (x, row + 0.5))]
    panel.lines([stairs], colors=INK, linewidths=2.2, zorder=4)
    panel.mark("moment", moment)
    keys = [(colour, False, name) for name, (_, colour) in kinds.items()]
    panel.legend([*keys, (COLOURS["wait"], False, "waiting"), (INK, False, "frontier")], note)
    return panel.finish(alt or title)


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
