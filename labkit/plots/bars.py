"""Pictures of plain numbers: bars on lanes, curves, and who owns what; fast enough to follow a slider."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.plots.panel import CYCLE, GREY, GROUND, INK, Panel, Picture, text_width
from labkit.text import duration, unit_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["COLOURS", "CYCLE", "Bar", "Picture", "curves", "duration", "gantt", "occupancy", "ownership"]

COLOURS = {
    "compute": CYCLE[0],
    "communicate": CYCLE[1],
    "transfer": CYCLE[9],
    "wait": "#ddd6b5",  # pale: it is what is missing
    "finished by all": CYCLE[3],
    "checkpoint": CYCLE[4],
    "lost": CYCLE[2],
    "restart": CYCLE[7],
}
_ALARM = CYCLE[2]
# the edge keeps one fault among a million items visible
_FAULT: dict[str, Any] = {"edgecolors": _ALARM, "linewidths": 1.4, "zorder": 3}


class Bar(NamedTuple):
    """One stretch of time on one lane, in seconds; `kind` gives its colour."""

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
    unit: str = "s",
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
    panel = _lanes(names, _span(span, end), unit, title, ax)
    panel.boxes(
        0, panel.xlim[1], np.arange(len(names)) - 0.45, np.arange(len(names)) + 0.45, facecolors=GROUND, zorder=0.5
    )
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
    unit: str = "s",
    who: str = "worker",
    alt: str = "",
    ax: Axes | None = None,
) -> Picture:
    """Draw a schedule with too many bars to see: the darker, the larger the share of that time that was busy.

    `lane`, `start`, `end` [tasks] fall on a grid of at most 240 × 640, where a row may stand for many lanes.
    """
    lane, start, end = np.asarray(lane, dtype=np.int64), np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    rows, columns, span = min(lanes, 240), 640, _span(span, end.max(initial=0.0))
    row = lane * rows // lanes
    grid = np.zeros((rows, columns + 2))
    for moment, sign in ((start, 1.0), (end, -1.0)):
        x = np.clip(moment / span, 0.0, 1.0) * columns
        column = x.astype(np.int64)  # a step at x fills part of its own column, and all later ones
        np.add.at(grid, (row, column), sign * (column + 1 - x))
        np.add.at(grid, (row, column + 1), sign * (x - column))
    per_row = np.bincount(np.arange(lanes) * rows // lanes)[:, None]
    busy = np.clip(np.cumsum(grid, axis=1)[:, :columns] / per_row, 0, 1)
    panel = _lanes([""] * 8, span, unit, title, ax, f"{lanes:,} {who}s")
    panel.word(f"{lanes:,} {who}s", 0, 3.5, dx=-6, align="right")
    panel.image(_shade(busy, COLOURS["compute"]), (0, span, 7.5, -0.5))
    for name, at in (marks or {}).items():
        panel.mark(name, at)
    panel.legend([], f"{note}; the darker, the more of them busy".lstrip("; "))
    return panel.finish(alt or title)


def curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    note: str = "",
    marks: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Picture:
    """Draw one line for each name in `series` (x, y of equal length; points that are not finite leave a gap).

    `marks` are named places on the x axis, drawn as dashed lines.
    """
    data = {name: (np.asarray(x, dtype=float), np.asarray(y, dtype=float)) for name, (x, y) in series.items()}
    xlim, (low, high) = _range([x for x, _ in data.values()]), _range([y for _, y in data.values()])
    pad = 0.05 * (high - low)
    panel = Panel(2.6, xlim, (low - pad, high + pad), title=title, left=0.62, ax=ax)
    panel.x_axis(xlabel)
    panel.y_axis(ylabel)
    dashes = ("-", "--", "-.", ":")
    for k, (x, y) in enumerate(data.values()):
        style = {"color": CYCLE[k % len(CYCLE)], "linestyle": dashes[k // len(CYCLE) % 4], "linewidth": 1.8}
        panel.ax.plot(x, y, marker="o" if len(x) <= 30 else "", markersize=4, clip_on=False, **style)  # type: ignore[arg-type]
    panel.ax.set(xlim=panel.xlim, ylim=panel.ylim)
    for name, at in (marks or {}).items():
        panel.mark(name, at)
    panel.legend([(CYCLE[k % len(CYCLE)], False, name) for k, name in enumerate(data)], note)
    return panel.finish(title or f"{ylabel} against {xlabel}: {', '.join(data)}")


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
    names = [f"part {p}" for p in range(parts)] if parts <= 24 else [f"{parts:,} parts"] + [""] * 7
    rows = len(names)
    left = 0.2 + max(map(text_width, [*names, "union"]))
    panel = Panel(_height(rows + 1), (0, n), (rows + 0.6, -0.5), title=title, left=left, bottom=0.3, ax=ax)
    panel.rows(["" if parts > 24 else name for name in names] + ["union"])
    if parts > 24:
        panel.word(names[0], 0, (rows - 1) / 2, dx=-6, align="right")
    if parts <= 24 and len(indices) * n <= 4000:
        _cells(panel, indices, counts)
    else:
        panel.image(_shares(indices, n, min(parts, 240)), (0, n, rows - 0.5, -0.5))
    _union(panel, counts, rows)
    if labels:
        step = next((k for k in (1, 2, 5, 10, 20) if all(panel.fits(label, k) for label in labels[::k])), n)
        for k in range(0, n, step):
            panel.word(labels[k], k + 0.5, panel.ylim[0], dy=-6, align="centre", colour=GREY)
    lost, repeated = int((counts == 0).sum()), int((counts > 1).sum())
    panel.legend([], f"{n:,} items: {lost:,} lost, {repeated:,} repeated" if lost or repeated else f"{n:,} items")
    return panel.finish(alt or title)


def _lanes(names: Sequence[str], span: float, unit: str, title: str, ax: Axes | None, widest: str = "") -> Panel:
    """A panel with one row for each name and a time axis from 0 to `span` seconds in the unit that reads best."""
    left = 0.2 + max(map(text_width, [*names, widest, " "]))
    panel = Panel(_height(len(names)), (0, span), (len(names) - 0.5, -0.5), title=title, left=left, ax=ax)
    panel.rows(names)
    scale, shown = unit_for(span) if unit == "s" else (1.0, unit)
    panel.x_axis(shown, scale)
    return panel


def _span(wanted: float | None, end: float) -> float:
    """The length of the time axis: as wanted, else to the end; a moment even where nothing takes any time."""
    return wanted or (float(end) if end > 1e-12 else 1.0)


def _height(rows: int) -> float:
    return max(rows * min(0.36, max(0.17, 4.0 / max(rows, 1))), 0.5)


def _bars(panel: Panel, bars: Sequence[Bar], top: float, bottom: float, **style: object) -> None:
    lane = np.array([bar.lane for bar in bars], dtype=float)
    start, end = [bar.start for bar in bars], [bar.end for bar in bars]
    panel.boxes(
        start,
        end,
        lane + top,
        lane + bottom,
        **{"edgecolors": "white", "linewidths": 0.8, "zorder": 2, **style},
    )
    for bar in bars:
        if bar.label and panel.fits(bar.label, bar.end - bar.start, bottom - top):
            panel.word(bar.label, (bar.start + bar.end) / 2, bar.lane + (top + bottom) / 2, align="centre")


def _cells(panel: Panel, indices: Sequence[NDArray[np.int64]], counts: NDArray[np.int64]) -> None:
    edge: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.6}
    for part, mine in enumerate(indices):
        panel.boxes(0, panel.xlim[1], part - 0.42, part + 0.42, facecolors=GROUND, zorder=0.5)
        panel.boxes(mine, mine + 1, part - 0.42, part + 0.42, facecolors=CYCLE[part % len(CYCLE)], **edge)
        twice = mine[counts[mine] > 1]
        panel.boxes(
            twice + 0.06, twice + 0.94, part - 0.38, part + 0.38, facecolors="none", **{**_FAULT, "edgecolors": INK}
        )


def _shares(indices: Sequence[NDArray[np.int64]], n: int, rows: int) -> NDArray[np.float64]:
    """Colours [rows, columns, 3]: how much of each stretch of items a row of parts holds, relative to the most."""
    columns, parts = min(n, 640), len(indices)
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
    panel.boxes(0, n, row - 0.42, row + 0.42, facecolors=CYCLE[3] if n > 240 else GROUND)
    if n <= 240:
        panel.boxes(once, once + 1, row - 0.42, row + 0.42, facecolors=CYCLE[3], edgecolors="white", linewidths=0.6)
    for found, face in ((lost, "white"), (repeated, CYCLE[1])):
        panel.boxes(found, found + 1, row - 0.42, row + 0.42, facecolors=face, **_FAULT)
    for k in lost if panel.fits("×", 1.0) else ():
        panel.word("×", k + 0.5, row, align="centre", colour=_ALARM, size=12)
    for k in repeated if panel.fits("2×", 1.0) else ():
        panel.word(f"{counts[k]}×", k + 0.5, row, align="centre")


def _shade(share: NDArray[np.float64], colour: str) -> NDArray[np.float64]:
    full = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return 1 - share[..., None] * (1 - full)


def _range(values: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    joined = np.concatenate([*values, np.empty(0)])
    finite = joined[np.isfinite(joined)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


# -- Pictures of whole numbers: how often each of them occurs.

__all__ = ["histogram"]


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
    panel = Panel(1.5, (-0.75, float(left[-1]) + wide + 0.25), (0.0, 1.0), title=title, left=0.62)
    panel.y_axis("share")
    panel.x_axis(xlabel)
    for some, hollow in ((groups, False), (beside, True)):
        floor, total = np.zeros(len(left)), sum(data[name].size for name in some)
        for k, name in enumerate(some):
            top = floor + np.bincount(data[name] // wide, minlength=len(left)) / total
            look: dict[str, Any] = {"facecolors": CYCLE[k], "edgecolors": "white", "linewidths": 0.6, "zorder": 2}
            if hollow:
                look = {"facecolors": "none", "edgecolors": INK, "linewidths": 1.1, "zorder": 3}
            shown, inset = top > floor, 0.02 if hollow else 0.12
            panel.boxes(left[shown] + inset, left[shown] + wide - inset, floor[shown], top[shown], **look)
            floor = top
    for name, at in marks.items():
        panel.mark(name, at)
    keys = [(CYCLE[k], False, name) for k, name in enumerate(groups)] + [(INK, True, name) for name in beside]
    panel.legend(keys, note)
    return panel.finish(title or f"{xlabel}: how often, of {', '.join(data)}")
