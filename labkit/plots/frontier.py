"""The frontier: how accurate each algorithm became, against the bytes and against the seconds it took."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.costs.pareto import pareto
from labkit.plots.panel import CYCLE, DPI, FAINT, GREY, INK, SIZE, WIDTH, Panel, Picture, text_width, ticks
from labkit.text import amount, unit_for

Floats = NDArray[np.float64]
_TALL, _LEFT, _BOTTOM, _TOP = 2.8, 0.62, 0.55, 0.95  # inches: the panels' height, and what is left, below and above
_FEWEST = 1e-4  # errors, as a share, below which accuracies look alike
_TICKS = (0.9, 0.5, 0.99, 0.95, 0.8, 0.0, 0.98, 0.7, 0.2, 0.97, 0.995, 0.999, 0.96, 0.6, 0.4)  # the best first
_FAR = 20.0  # between the shortest and the longest time, from which on the axis is logarithmic
_LEADER = 14.0  # points between a name and its point from which on a line joins them


@dataclass(frozen=True)
class Trail:
    """One algorithm's way: test accuracies [E], with what one peer had sent (bytes) and the seconds by then, [E]."""

    name: str
    accuracy: Sequence[float]
    bytes: Sequence[float]
    seconds: Sequence[float]


@dataclass(frozen=True)
class Scale:
    """An axis: where a cost stands on it, and its ticks (place, words)."""

    low: float
    high: float
    marks: Sequence[tuple[float, str]]
    log: bool
    label: str
    nought: float = 0.0  # where a cost of nothing stands on a logarithmic axis
    begin: float = -math.inf  # where the scale begins right of that place

    def along(self, costs: Sequence[float], heights: Floats) -> Floats:
        """The points [E, 2] of a curve, but for those between the place of nothing and the scale's beginning."""
        cost = np.asarray(costs, dtype=float)
        x = np.where(cost > 0, np.log10(np.maximum(cost, 1e-300)), self.nought) if self.log else cost
        points: Floats = np.stack([x, heights], axis=1)
        return points[(x >= self.begin) | (cost <= 0)]


def draw(trails: Sequence[Trail], *, title: str, bytes_are: str, seconds_are: str) -> Picture:
    """Draw accuracy against bytes per peer and against seconds, one curve for each algorithm, and who is unbeaten.

    `bytes_are` and `seconds_are` say where the figures come from (measured, by formula, of a virtual clock).
    """
    known = [(k, trail) for k, trail in enumerate(trails) if len(trail.accuracy)]
    left, right = _axes()
    ylim = _shown([trail.accuracy for _, trail in known])
    first = _panel(left, known, ylim, _bytes([trail.bytes for _, trail in known], bytes_are), "bytes")
    second = _panel(right, known, ylim, _seconds([trail.seconds for _, trail in known], seconds_are), "seconds")
    first.word(title, first.xlim[0], ylim[1], dx=-28, dy=50, size=10.5)
    note = "filled, dashed: the Pareto frontier, where nobody is better for less; hollow: somebody is"
    first.word(note, first.xlim[0], ylim[1], dx=-28, dy=32, colour=GREY)
    first.finish("")
    ends = "; ".join(f"{trail.name} {trail.accuracy[-1]:.1%}" for _, trail in known)
    return second.finish(f"{title}. Test accuracy against bytes ({bytes_are}) and seconds ({seconds_are}): {ends}")


def _panel(ax: Any, trails: Sequence[tuple[int, Trail]], ylim: tuple[float, float], scale: Scale, what: str) -> Panel:
    panel = Panel(_TALL, (scale.low, scale.high), ylim, ax=ax)
    _axes_of(panel, scale)
    panel.word("↖ better", scale.low, ylim[1], dx=4, dy=-7, colour=GREY)
    curves = [scale.along(getattr(trail, what), _height(trail.accuracy)) for _, trail in trails]
    for (k, _), curve in zip(trails, curves, strict=True):
        colour, dash = CYCLE[k % len(CYCLE)], ("-", "--", ":")[k // len(CYCLE) % 3]
        panel.ax.plot(curve[:, 0], curve[:, 1], color=colour, linewidth=1.5, alpha=0.6, linestyle=dash, zorder=2)
    panel.ax.set(xlim=panel.xlim, ylim=panel.ylim)
    ends = np.array([curve[-1] for curve in curves]).reshape(-1, 2)
    best = pareto([getattr(trail, what)[-1] for _, trail in trails], ends[:, 1])
    stair = _stair(panel, ends[list(best)])
    for at, (k, _) in enumerate(trails):
        colour = CYCLE[k % len(CYCLE)]
        face = colour if at in best else "white"
        panel.ax.scatter(
            ends[at, 0], ends[at, 1], s=42, marker="s", color=face, edgecolors=colour, linewidths=1.6, zorder=4
        )
    _names(panel, trails, ends, [*curves, stair])
    return panel


def _axes_of(panel: Panel, scale: Scale) -> None:
    """Ticks, grid and labels: costs below, accuracies at the left."""
    low, high = panel.ylim
    for x, text in scale.marks:
        panel.word(text, x, low, dy=-9, align="centre", colour=GREY)
    panel.lines([[(x, low), (x, high)] for x, _ in scale.marks], colors=FAINT, linewidths=0.6, zorder=1)
    panel.word(scale.label, scale.high, low, dy=-24, align="right", colour=GREY)
    for y, text in _marks(low, high, 1.6 * SIZE / panel.y_points):
        panel.word(text, scale.low, y, dx=-6, align="right", colour=GREY)
        panel.lines([[(scale.low, y), (scale.high, y)]], colors=FAINT, linewidths=0.6, zorder=1)
    panel.word("test accuracy (log of errors)", scale.low, high, dx=-28, dy=10, colour=GREY)


def _marks(low: float, high: float, apart: float) -> list[tuple[float, str]]:
    """The ticks between two heights: familiar accuracies, and round ones where there is room, so far `apart`."""
    chosen: list[tuple[float, str]] = []
    for accuracy in (*_TICKS, *ticks(1 - 10**-low, 1 - 10**-high, 5)):
        y = float(_height([accuracy])[0])
        if low <= y <= high and all(abs(y - other) > apart for other, _ in chosen):
            chosen.append((y, f"{100 * accuracy:g}%"))
    return chosen


def _height(accuracy: Sequence[float]) -> Floats:
    """Where accuracies stand: −log₁₀ of the share of errors, so that 98 % is as far above 96 % as that above 92 %."""
    heights: Floats = -np.log10(np.maximum(1 - np.asarray(accuracy, dtype=float), _FEWEST))
    return heights


def _stair(panel: Panel, ends: Floats) -> Floats:
    """The best accuracy that so much can buy: level from one unbeaten point to the next, then up. Its corners."""
    if not len(ends):
        return np.empty((0, 2))
    x, y = [*ends[:, 0], panel.xlim[1]], [panel.ylim[0], *ends[:, 1]]
    stair = [point for k in range(len(ends)) for point in ((x[k], y[k]), (x[k], y[k + 1]))] + [(x[-1], y[-1])]
    panel.lines([stair], colors=INK, linewidths=1.0, alpha=0.7, linestyles=[(0, (3, 2))], zorder=3)
    return np.array(stair)


def _names(panel: Panel, trails: Sequence[tuple[int, Trail]], ends: Floats, lines: Sequence[Floats]) -> None:
    """Write each name beside its end, with a thin line to it where it had to stand further away."""
    corner, unit = np.array([panel.xlim[0], panel.ylim[0]]), np.array([panel.x_points, panel.y_points])
    anchors, tall = (ends - corner) * unit, 1.15 * SIZE
    wide, high = (np.array([panel.xlim[1], panel.ylim[1]]) - corner) * unit
    better = [(x, high - y) for x in (10.0, 25.0, 40.0) for y in (4.0, 10.0)] * 5  # the words in the corner
    points = np.concatenate([better, *((_dense(line) - corner) * unit for line in lines)])
    widths = [72 * text_width(trail.name) for _, trail in trails]
    for at, low in enumerate(place(anchors, widths, tall, (wide, high), points)):
        (k, trail), far = trails[at], low + np.array([widths[at], tall])
        (left, bottom), (right, top) = low / unit + corner, far / unit + corner
        near = np.clip(anchors[at], low, far)
        if np.hypot(*(near - anchors[at])) > _LEADER:
            panel.lines([[tuple(ends[at]), tuple(near / unit + corner)]], colors=GREY, linewidths=0.6, zorder=3)
        panel.boxes(left, right, bottom, top, facecolors="white", alpha=0.7, zorder=3.5)
        panel.word(trail.name, left, bottom, dy=tall / 2, colour=_dark(CYCLE[k % len(CYCLE)]))


def _dense(line: Floats) -> Floats:
    """Many points on a line through a few [m, 2]."""
    at = np.linspace(0, max(len(line) - 1, 0), 80)
    return np.stack([np.interp(at, np.arange(len(line)), axis) for axis in line.T], axis=1) if len(line) else line


def _dark(colour: str) -> str:
    """The colour, dark enough for words on white."""
    return "#" + "".join(f"{int(0.62 * int(colour[i : i + 2], 16)):02x}" for i in (1, 3, 5))


def _shown(accuracies: Sequence[Sequence[float]]) -> tuple[float, float]:
    """From somewhat below the lowest end, so that the ends stand apart, to somewhat above the highest."""
    ends = _height([each[-1] for each in accuracies] or [0.0, 0.9])
    span = max(float(np.ptp(ends)), 0.4)
    return max(0.0, float(ends.min()) - 0.5 * span), float(ends.max()) + 0.25 * span


def _bytes(costs: Sequence[Sequence[float]], source: str) -> Scale:
    return _log_scale(costs, f"sent per peer, {source} (log)", amount)


def _seconds(costs: Sequence[Sequence[float]], source: str) -> Scale:
    ends: list[float] = [each[-1] for each in costs if each[-1] > 0]
    if ends and max(ends) > _FAR * min(ends):
        return _log_scale(costs, f"time in s, {source} (log)", lambda value: f"{value:g}")
    longest = max(ends, default=1.0)
    factor, unit = unit_for(longest)
    marks = [(mark / factor, f"{mark:g}") for mark in ticks(0.0, longest * factor, 6)]
    return Scale(0.0, 1.25 * longest, marks, False, f"time in {unit}, {source}")


def _log_scale(costs: Sequence[Sequence[float]], label: str, text: Any) -> Scale:
    """From the cheapest end's last stretch to the dearest end; a cost of nothing stands by itself at the left."""
    ends = [each[-1] for each in costs if each[-1] > 0]
    low, high = (math.log10(min(ends)) - 0.7, math.log10(max(ends)) + 0.45) if ends else (0.0, 1.0)
    factors = (1, 2, 5) if high - low < 2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    marks = [
        (math.log10(f * 10.0**p), text(f * 10.0**p))
        for p in powers
        for f in factors
        if low <= math.log10(f * 10.0**p) <= high
    ]
    if all(each[-1] > 0 for each in costs):
        return Scale(low, high, marks, True, label)
    nought = low - 0.12 * (high - low)
    return Scale(nought - 0.08 * (high - low), high, [(nought, "0"), *marks], True, label, nought, low)


def _axes() -> tuple[Any, Any]:
    """Two coordinate systems side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tall = _TALL + _BOTTOM + _TOP
    figure = Figure(figsize=(WIDTH, tall), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    width = (WIDTH - 2 * _LEFT - 0.25) / 2
    lefts = (_LEFT, 2 * _LEFT + width + 0.05)
    first, second = (figure.add_axes((x / WIDTH, _BOTTOM / tall, width / WIDTH, _TALL / tall)) for x in lefts)
    return first, second


# -- Labels: names beside their points, none on top of another.

_GAP = 7.0  # points between a marker's middle and its name
_STEP = 4.0  # of the lattice of other places
_CROSSED = 3.0  # points of distance that a name would rather be away than lie on one point of a line
_AWRY = 6.0  # points of distance that a place of the lattice counts as further than those right beside the anchor


def place(anchors: ArrayLike, widths: ArrayLike, height: float, room: tuple[float, float], lines: ArrayLike) -> Floats:
    """Where the names of `anchors` [n, 2] go: the lower left corners [n, 2] of boxes `widths` [n] by `height`.

    All in points, inside a `room` (width, height). A name stands near its anchor, clear of other names and of all
    anchors; it keeps off the points of `lines` [m, 2] where it can. Where there is no free place left it stands where
    it hides least.
    """
    at, wide = np.asarray(anchors, dtype=float).reshape(-1, 2), np.asarray(widths, dtype=float)
    under = _counted(np.asarray(lines, dtype=float).reshape(-1, 2), room)
    taken, corners = np.concatenate([at - 4, at + 4], axis=1), np.zeros_like(at)  # boxes: left, bottom, right, top
    for k in np.argsort(-at[:, 0], kind="stable"):  # who is near the right edge has least choice
        low, awry = _candidates(at[k], wide[k], height, room)
        boxes = np.concatenate([low, low + np.array([wide[k], height])], axis=1)
        hidden = _overlap(boxes, taken).sum(axis=1)
        distance = np.hypot(*(np.clip(at[k], boxes[:, :2], boxes[:, 2:]) - at[k]).T)
        best = np.argmin(distance + awry + _CROSSED * under(boxes) + 1e6 * hidden)
        corners[k] = low[best]
        taken = np.concatenate([taken, boxes[best][None]])
    return corners


def _candidates(at: Floats, width: float, height: float, room: tuple[float, float]) -> tuple[Floats, Floats]:
    """Lower left corners [c, 2]: right, left, above and below the anchor, then a lattice; and how awry each is [c]."""
    x, y = at
    beside = [(x + _GAP, y - height / 2), (x - _GAP - width, y - height / 2)]
    beside += [(x - width / 2, y + _GAP), (x - width / 2, y - _GAP - height)]
    across, up = max(room[0] - width, 0.0), max(room[1] - height, 0.0)
    grid = np.meshgrid(np.arange(0.0, across + 1e-9, _STEP), np.arange(0.0, up + 1e-9, _STEP))
    every = np.concatenate([np.array(beside), np.stack([axis.ravel() for axis in grid], axis=1)])
    awry = np.where(np.arange(len(every)) < len(beside), 0.0, _AWRY)
    fits = ((every >= 0) & (every <= (across, up))).all(axis=1)
    return every[fits], awry[fits]


def _counted(points: Floats, room: tuple[float, float]) -> Callable[[Floats], Floats]:
    """A function that counts how many of `points` [m, 2] lie in each of some boxes [c, 4], by a summed-area table."""
    size = tuple(int(length) + 2 for length in room)
    at = np.floor(points).astype(int)
    at = at[((at >= 0) & (at < np.array(size) - 1)).all(axis=1)]
    table = np.zeros(size)
    np.add.at(table, (at[:, 0] + 1, at[:, 1] + 1), 1.0)
    table = table.cumsum(axis=0).cumsum(axis=1)

    def count(boxes: Floats) -> Floats:
        left, bottom = np.clip(np.floor(boxes[:, :2] - 1).astype(int), 0, np.array(size) - 1).T
        right, top = np.clip(np.ceil(boxes[:, 2:] + 1).astype(int), 0, np.array(size) - 1).T
        inside: Floats = table[right, top] - table[left, top] - table[right, bottom] + table[left, bottom]
        return inside

    return count


def _overlap(boxes: Floats, others: Floats) -> Floats:
    """The area that each of `boxes` [c, 4] shares with each of `others` [m, 4], [c, m]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    area: Floats = np.clip(high - low, 0.0, None).prod(axis=2)
    return area
