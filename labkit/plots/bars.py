"""Bars: schedules as lanes of bars, who owns what, and how often numbers occur; fast enough to follow a slider."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.plots.panel import Panel, Picture, text_width
from labkit.plots.style import ADJOINING, ALARM, COLOURS, CYCLE, FAULT, GREY, GROUND, HOLLOW, INK
from labkit.text import unit_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS, _ROWS = 640, 240  # of a grid of shades
_THIN: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.6, "zorder": 2}


class Bar(NamedTuple):
    """One interval of time on one lane, in seconds; `kind` gives its colour."""

    lane: int
    start: float
    end: float
    label: str | None = None
    kind: str = "compute"


def gantt(
    bars: Sequence[Bar],
    lanes: Sequence[str] | int,
    *,
    title: str = "",
    note: str = "",
    overlay: Sequence[Bar] = (),
    overlay_note: str = "predicted",
    marks: Mapping[str, float] | None = None,
    span: float | None = None,
    alt: str = "",
    ax: Axes | None = None,
) -> Picture:
    """Draw bars on lanes against time; a second schedule (`overlay`) stands as outlines below the first.

    `note` and `overlay_note` say what each of the two is (predicted, measured); `marks` are named moments in seconds,
    drawn as dashed lines; `span` fixes the length of the time axis, so that pictures can be compared.
    """
    marks = marks or {}
    end = max([b.end for b in bars] + [b.end for b in overlay] + list(marks.values()), default=0.0)
    names = [f"worker {k}" for k in range(lanes)] if isinstance(lanes, int) else list(lanes)
    panel = time_panel(names, span or end, title=title, ax=ax)
    rows = np.arange(len(names))
    panel.boxes(0, panel.xlim[1], rows - 0.45, rows + 0.45, facecolors=GROUND, zorder=0.5)
    top, bottom = (-0.42, 0.08) if overlay else (-0.38, 0.38)
    kinds = list(dict.fromkeys(bar.kind for bar in bars))
    for kind in kinds:
        _bars(panel, [b for b in bars if b.kind == kind], top, bottom, facecolors=COLOURS.get(kind, GREY))
    _bars(panel, overlay, 0.14, 0.42, facecolors="white", edgecolors=INK, linewidths=1.0)
    for name, at in marks.items():
        panel.mark(name, at)
    legend = [(COLOURS.get(kind, GREY), False, kind) for kind in kinds if len(kinds) > 1]
    if overlay:
        legend = [(COLOURS["compute"], False, note or "compute"), *legend[1:], (INK, True, overlay_note)]
    panel.legend(legend, "" if overlay else note)
    return panel.finish(alt or title or f"{len(bars)} bars on {len(names)} lanes")


def occupancy(
    lane: ArrayLike,
    start: ArrayLike,
    end: ArrayLike,
    lanes: int,
    *,
    title: str = "",
    note: str = "",
    marks: Mapping[str, float] | None = None,
    span: float | None = None,
    who: str = "worker",
    alt: str = "",
    ax: Axes | None = None,
) -> Picture:
    """Draw a schedule with too many bars to see: the darker, the larger the share of that time that was busy.

    `lane`, `start`, `end` [tasks] fall on a grid of at most 240 × 640, where a row may stand for many lanes.
    """
    lane, start, end = np.asarray(lane, dtype=np.int64), np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    names = _in_the_middle(f"{lanes:,} {who}s")
    panel = time_panel(names, span or float(end.max(initial=0.0)), title=title, ax=ax)
    rows, span = min(lanes, _ROWS), panel.xlim[1]
    row = lane * rows // lanes
    grid = np.zeros((rows, _COLUMNS + 2))
    for moment, sign in ((start, 1.0), (end, -1.0)):
        x = np.clip(moment / span, 0.0, 1.0) * _COLUMNS
        column = x.astype(np.int64)  # a step at x fills part of its own column, and all later ones
        np.add.at(grid, (row, column), sign * (column + 1 - x))
        np.add.at(grid, (row, column + 1), sign * (x - column))
    per_row = np.bincount(np.arange(lanes) * rows // lanes)[:, None]
    busy = np.clip(np.cumsum(grid, axis=1)[:, :_COLUMNS] / per_row, 0, 1)
    panel.image(_shade(busy, COLOURS["compute"]), (0, span, len(names) - 0.5, -0.5))
    for name, at in (marks or {}).items():
        panel.mark(name, at)
    panel.legend([], f"{note}; the darker, the more of them busy".lstrip("; "))
    return panel.finish(alt or title)


def ownership(
    indices: Sequence[NDArray[np.int64]],
    n: int,
    *,
    labels: Sequence[str] | None = None,
    title: str = "",
    alt: str = "",
    ax: Axes | None = None,
) -> Picture:
    """Draw which of n items each part holds, a row for each part, and below them the union with its faults marked."""
    parts = len(indices)
    counts = np.bincount(np.concatenate([*indices, np.empty(0, dtype=np.int64)]), minlength=n)
    names = [f"part {p}" for p in range(parts)] if parts <= 24 else _in_the_middle(f"{parts:,} parts")
    panel = row_panel([*names, "union"], (0, n), title=title, bottom=0.3, ax=ax)
    if parts <= 24 and parts * n <= 4000:
        _cells(panel, indices, counts)
    else:
        panel.image(_shares(indices, n, min(parts, _ROWS)), (0, n, len(names) - 0.5, -0.5))
    _union(panel, counts, len(names))
    panel.x_axis("", [(k + 0.5, label) for k, label in enumerate(labels or ())], grid=False)
    lost, repeated = int((counts == 0).sum()), int((counts > 1).sum())
    panel.legend([], f"{n:,} items: {lost:,} lost, {repeated:,} repeated" if lost or repeated else f"{n:,} items")
    return panel.finish(alt or title)


def histogram(
    groups: Mapping[str, ArrayLike],
    *,
    xlabel: str,
    beside: Mapping[str, ArrayLike] | None = None,
    title: str = "",
    note: str = "",
    marks: Mapping[str, float] | None = None,
) -> Picture:
    """Draw how often whole numbers from 0 on occur, as shares of all: a bar for each, on top of each other by group.

    `beside` holds other groups, whose bars stand as outlines around the first ones; `marks` are named numbers.
    """
    marks, beside = marks or {}, beside or {}
    data = {name: np.asarray(values, dtype=np.int64).ravel() for name, values in {**groups, **beside}.items()}
    most = int(max([10, *(values.max(initial=0) for values in data.values()), *marks.values()]))
    wide = math.ceil((most + 1) / 60)  # numbers in one bar
    left = np.arange(0, most + 1, wide) - 0.5
    panel = share_panel("share", (-0.75, float(left[-1]) + wide + 0.25), title=title)
    panel.x_axis(xlabel)
    for some, inset in ((groups, 0.12), (beside, 0.02)):
        floor, total = np.zeros(len(left)), sum(data[name].size for name in some)
        for k, name in enumerate(some):
            top = floor + np.bincount(data[name] // wide, minlength=len(left)) / total
            shown, style = top > floor, {"facecolors": CYCLE[k], "zorder": 2} if some is groups else HOLLOW
            panel.boxes(left[shown] + inset, left[shown] + wide - inset, floor[shown], top[shown], **style)
            floor = top
    for name, at in marks.items():
        panel.mark(name, at)
    keys = [(CYCLE[k], False, name) for k, name in enumerate(groups)] + [(INK, True, name) for name in beside]
    panel.legend(keys, note)
    return panel.finish(title or f"{xlabel}: how often, of {', '.join(data)}")


def row_panel(
    names: Sequence[str], xlim: tuple[float, float], *, title: str, bottom: float = 0.48, ax: Axes | None = None
) -> Panel:
    """A panel with one named row for each name, from the top down."""
    height = max(len(names) * min(0.36, max(0.17, 4.0 / max(len(names), 1))), 0.5)
    left = 0.2 + max(map(text_width, [*names, " "])) / 72
    panel = Panel(height, xlim, (len(names) - 0.5, -0.5), title=title, left=left, bottom=bottom, ax=ax)
    panel.rows(names)
    return panel


def time_panel(names: Sequence[str], span: float, *, title: str, ax: Axes | None = None) -> Panel:
    """Named rows against a time axis from 0 to `span` seconds, in the unit that reads best; 1 s where all is zero."""
    span = span if span > 1e-12 else 1.0
    panel = row_panel(names, (0, span), title=title, ax=ax)
    scale, unit = unit_for(span)
    panel.x_axis(unit, scale=scale)
    return panel


def share_panel(ylabel: str, xlim: tuple[float, float], *, title: str) -> Panel:
    """A panel for columns of shares, from 0 to 1."""
    panel = Panel(1.55, xlim, (0.0, 1.0), title=title, left=0.62)
    panel.y_axis(ylabel)
    return panel


def _in_the_middle(name: str) -> list[str]:
    """The names of so many rows that stand for many lanes."""
    return ["", "", "", name, "", "", ""]


def _bars(panel: Panel, bars: Sequence[Bar], top: float, bottom: float, **style: Any) -> None:
    lane = np.array([bar.lane for bar in bars], dtype=float)
    start, end = [bar.start for bar in bars], [bar.end for bar in bars]
    panel.boxes(start, end, lane + top, lane + bottom, **{**ADJOINING, **style})
    for bar in bars:
        if bar.label and panel.fits(bar.label, bar.end - bar.start, bottom - top):
            panel.word(bar.label, (bar.start + bar.end) / 2, bar.lane + (top + bottom) / 2, align="centre")


def _cells(panel: Panel, indices: Sequence[NDArray[np.int64]], counts: NDArray[np.int64]) -> None:
    rows = np.arange(len(indices))
    panel.boxes(0, panel.xlim[1], rows - 0.42, rows + 0.42, facecolors=GROUND, zorder=0.5)
    for part, mine in enumerate(indices):
        colour, twice = CYCLE[part % len(CYCLE)], mine[counts[mine] > 1]
        panel.boxes(mine, mine + 1, part - 0.42, part + 0.42, facecolors=colour, **_THIN)
        panel.boxes(twice + 0.06, twice + 0.94, part - 0.38, part + 0.38, **{**HOLLOW, "linewidths": 1.4})


def _shares(indices: Sequence[NDArray[np.int64]], n: int, rows: int) -> NDArray[np.float64]:
    """Colours [rows, columns, 3]: how much of each stretch of items a row of parts holds, relative to the most."""
    columns, parts = min(n, _COLUMNS), len(indices)
    row_of, column_of = np.arange(parts) * rows // parts, np.arange(n) * columns // n
    share = np.zeros((rows, columns))
    for part, mine in enumerate(indices):
        share[row_of[part]] += np.bincount(column_of[mine], minlength=columns)
    share /= np.bincount(column_of, minlength=columns)
    share /= share.max(initial=1e-9)
    return np.stack([_shade(line, CYCLE[row % len(CYCLE)]) for row, line in enumerate(share)])


def _union(panel: Panel, counts: NDArray[np.int64], row: int) -> None:
    """The bottom row: grey where one part holds the item, crossed where none does, numbered where several do."""
    n = len(counts)
    once, lost, repeated = (np.flatnonzero(found) for found in (counts == 1, counts == 0, counts > 1))
    panel.boxes(0, n, row - 0.42, row + 0.42, facecolors=COLOURS["finished by all"] if n > 240 else GROUND)
    if n <= 240:
        panel.boxes(once, once + 1, row - 0.42, row + 0.42, facecolors=COLOURS["finished by all"], **_THIN)
    for found, face in ((lost, "white"), (repeated, CYCLE[1])):
        panel.boxes(found, found + 1, row - 0.42, row + 0.42, facecolors=face, **FAULT)
    for k in lost if panel.fits("×", 1.0) else ():
        panel.word("×", k + 0.5, row, align="centre", colour=ALARM, size=12)
    for k in repeated if panel.fits("2×", 1.0) else ():
        panel.word(f"{counts[k]}×", k + 0.5, row, align="centre")


def _shade(share: NDArray[np.float64], colour: str) -> NDArray[np.float64]:
    full = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return 1 - share[..., None] * (1 - full)
