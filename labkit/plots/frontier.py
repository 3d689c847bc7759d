"""The frontier: how good each algorithm became, against the bytes and against the seconds it took."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.plots.panel import Marks, Panel, Picture, axes, text_width, ticks
from labkit.plots.style import CYCLE, GREY, INK, SIZE, TITLE_SIZE
from labkit.text import amount, unit_for

Floats = NDArray[np.float64]
_TALL, _LEFT, _BOTTOM, _TOP = 2.8, 0.62, 0.55, 0.95  # inches: the panels' height, and what is left, below and above
_FEWEST = 1e-4  # errors, as a share, below which accuracies look alike
_TICKS = (0.9, 0.5, 0.99, 0.95, 0.8, 0.0, 0.98, 0.7, 0.2, 0.97, 0.995, 0.999, 0.96, 0.6, 0.4)  # the best first
_FAR = 20.0  # between the shortest and the longest time, from which on the axis is logarithmic
_LEADER = 14.0  # points between a name and its point from which on a line joins them


@dataclass(frozen=True)
class Trail:
    """One algorithm's way: what tests told [E], with what one peer had sent (bytes) and the seconds by then, [E]."""

    name: str
    scores: Sequence[float]
    bytes: Sequence[float]
    seconds: Sequence[float]
    spread: Sequence[float] = ()  # how far to either side the scores are drawn as a band, [E]


@dataclass(frozen=True)
class Quality:
    """What is drawn upright, the better the higher: a share of what is right, or another measure, which may be lower
    where it is better."""

    name: str = "accuracy"
    lower: bool = False

    @property
    def share(self) -> bool:
        """Whether it is a share of what is right, drawn by the logarithm of the errors."""
        return self.name.endswith("accuracy")

    @property
    def label(self) -> str:
        """What stands beside the axis."""
        what = "test accuracy" if self.name == "accuracy" else self.name
        return f"{what} (log of errors)" if self.share else f"{what} (lower is better)" if self.lower else what

    def height(self, scores: ArrayLike) -> Floats:
        """Where they stand."""
        values: Floats = np.asarray(scores, dtype=float)
        return _height(np.clip(values, 0, 1)) if self.share else -values if self.lower else values

    def shown(self, ends: Sequence[float]) -> tuple[float, float]:
        """From where to where the axis goes: the ends stand apart."""
        if self.share:
            return _shown(ends)
        heights = self.height([it for it in ends if math.isfinite(it)] or [0.0, 1.0])
        span = float(np.ptp(heights)) or abs(float(heights[0])) or 1.0
        return float(heights.min()) - 0.5 * span, float(heights.max()) + 0.25 * span

    def marks(self, low: float, high: float, apart: float) -> Marks:
        """The ticks between two heights."""
        if self.share:
            return _marks(low, high, apart)
        sign = -1 if self.lower else 1
        return [(sign * value, f"{value:g}") for value in ticks(sign * low, sign * high, 6)]

    def words(self, score: float) -> str:
        """A value as people write it."""
        return f"{score:.1%}" if self.share else f"{score:.4g}"


StyledTrail = tuple[str, str, Trail]  # colour, dashes, and whose they are


@dataclass(frozen=True)
class Scale:
    """An axis: where a cost stands on it, and its ticks (place, words)."""

    low: float
    high: float
    marks: Marks
    log: bool
    label: str
    zero: float = 0.0  # where a cost of nothing stands on a logarithmic axis
    begin: float = -math.inf  # where the scale begins right of that place

    def along(self, costs: Sequence[float], heights: Floats) -> Floats:
        """The points [E, 2] of a curve, but for those between the place of nothing and the scale's beginning."""
        cost = np.asarray(costs, dtype=float)
        x = np.where(cost > 0, np.log10(np.maximum(cost, 1e-300)), self.zero) if self.log else cost
        points: Floats = np.stack([x, heights], axis=1)
        return points[(x >= self.begin) | (cost <= 0)]


def draw(
    trails: Sequence[Trail],
    *,
    best: tuple[Collection[str], Collection[str]],
    title: str,
    bytes_are: str,
    seconds_are: str,
    band_is: str = "",
    quality: Quality = Quality(),
) -> Picture:
    """Draw a quality against bytes per peer and against seconds: one curve for each algorithm, and Pareto frontiers.

    `best` names the algorithms on the frontier by bytes, and those on that by seconds; `bytes_are` and `seconds_are`
    say where the figures come from (measured, by formula, of a virtual clock), `band_is` what the bands are.
    """
    looks = [(CYCLE[k % len(CYCLE)], ("-", "--", ":")[k // len(CYCLE) % 3]) for k in range(len(trails))]
    known = [(*look, trail) for look, trail in zip(looks, trails, strict=True) if len(trail.scores)]
    ylim = quality.shown([trail.scores[-1] for *_, trail in known])
    left, right = axes(_TALL, _TOP, _BOTTOM, _LEFT, columns=2)
    sent = _log_scale([trail.bytes for *_, trail in known], f"sent per peer, {bytes_are} (log)", amount)
    first = _panel(left, known, quality, ylim, sent, "bytes", best[0])
    took = _seconds([trail.seconds for *_, trail in known], seconds_are)
    second = _panel(right, known, quality, ylim, took, "seconds", best[1])
    first.word(title, first.xlim[0], ylim[1], dx=8 - 72 * _LEFT, dy=50, size=TITLE_SIZE)
    note = "filled squares, on the dashed line: the Pareto frontier; "
    note += f"bands: {band_is}" if band_is else "hollow squares: not on it"  # in one line there is room for one of them
    first.word(note, first.xlim[0], ylim[1], dx=8 - 72 * _LEFT, dy=32, colour=GREY)
    first.finish("")
    ends = "; ".join(f"{trail.name} {quality.words(trail.scores[-1])}" for *_, trail in known)
    ends += f" ({band_is})" if band_is else ""
    what = quality.label.split(" (")[0]
    what = what[0].upper() + what[1:]
    return second.finish(f"{title}. {what} against bytes ({bytes_are}) and seconds ({seconds_are}): {ends}")


def _panel(
    ax: Any,
    trails: Sequence[StyledTrail],
    quality: Quality,
    ylim: tuple[float, float],
    scale: Scale,
    what: str,
    best: Collection[str],
) -> Panel:
    panel = Panel(_TALL, (scale.low, scale.high), ylim, ax=ax)
    panel.x_axis(scale.label, scale.marks)
    panel.y_axis(quality.label, quality.marks(*ylim, 1.6 * SIZE / panel.y_points))
    panel.word("↖ better", scale.low, ylim[1], dx=4, dy=-7, colour=GREY)
    curves = [scale.along(getattr(trail, what), quality.height(trail.scores)) for *_, trail in trails]
    ends = np.array([curve[-1] for curve in curves]).reshape(-1, 2)
    for (colour, dash, trail), curve, (x, y) in zip(trails, curves, ends, strict=True):
        if len(trail.spread):
            scores, spread, cost = np.array(trail.scores), np.array(trail.spread), getattr(trail, what)
            low, high = (scale.along(cost, quality.height(scores + s * spread)) for s in (-1, 1))
            panel.ax.fill_between(low[:, 0], low[:, 1], high[:, 1], color=colour, alpha=0.15, linewidth=0, zorder=1)
        panel.ax.plot(*curve.T, color=colour, linewidth=1.5, alpha=0.6, linestyle=dash, zorder=2)
        face = colour if trail.name in best else "white"
        panel.ax.scatter(x, y, s=42, marker="s", color=face, edgecolors=colour, linewidths=1.6, zorder=4)
    stair = _stair(panel, ends[[trail.name in best for *_, trail in trails]] if trails else ends)
    _names(panel, trails, ends, [*curves, stair])
    return panel


def _marks(low: float, high: float, apart: float) -> list[tuple[float, str]]:
    """The ticks between two heights: familiar accuracies, and round ones where there is room, so far `apart`."""
    chosen: list[tuple[float, str]] = []
    for accuracy in (*_TICKS, *ticks(1 - 10**-low, 1 - 10**-high, 5)):
        y = float(_height([accuracy])[0])
        if low <= y <= high and all(abs(y - other) > apart for other, _ in chosen):
            chosen.append((y, f"{100 * accuracy:g}%"))
    return chosen


def _height(accuracy: ArrayLike) -> Floats:
    """Where accuracies stand: −log₁₀ of the share of errors, so that 98 % is as far above 96 % as that above 92 %."""
    heights: Floats = -np.log10(np.maximum(1 - np.asarray(accuracy, dtype=float), _FEWEST))
    return heights


def _shown(accuracies: Sequence[float]) -> tuple[float, float]:
    """From somewhat below the lowest end, so that the ends stand apart, to somewhat above the highest."""
    ends = _height(accuracies or [0.0, 0.9])
    span = max(float(np.ptp(ends)), 0.4)
    return max(0.0, float(ends.min()) - 0.5 * span), float(ends.max()) + 0.25 * span


def _stair(panel: Panel, ends: Floats) -> Floats:
    """The best that so much can buy: level from one end on the frontier to the next, then up. Its corners."""
    if not len(ends):
        return np.empty((0, 2))
    ends = ends[np.lexsort((ends[:, 1], ends[:, 0]))]
    x, y = np.append(ends[:, 0], panel.xlim[1]), np.append(panel.ylim[0], ends[:, 1])
    stair: Floats = np.stack([np.repeat(x, 2)[:-1], np.repeat(y, 2)[1:]], axis=1)
    panel.lines([stair], colors=INK, linewidths=1.0, alpha=0.7, linestyles=[(0, (3, 2))], zorder=3)
    return stair


def _names(panel: Panel, trails: Sequence[StyledTrail], ends: Floats, lines: Sequence[Floats]) -> None:
    """Write each name beside its end, with a thin line to it where it had to stand further away."""
    corner, unit = np.array([panel.xlim[0], panel.ylim[0]]), np.array([panel.x_points, panel.y_points])
    anchors, tall = (ends - corner) * unit, 1.15 * SIZE
    wide, high = (np.array([panel.xlim[1], panel.ylim[1]]) - corner) * unit
    better = [(x, high - y) for x in (10.0, 25.0, 40.0) for y in (4.0, 10.0)] * 5  # the words in the corner
    points = np.concatenate([better, *((_dense(line) - corner) * unit for line in lines)])
    widths = [text_width(trail.name) for *_, trail in trails]
    for at, low in enumerate(place(anchors, widths, tall, (wide, high), points)):
        (colour, _, trail), far = trails[at], low + np.array([widths[at], tall])
        (left, bottom), (right, top) = low / unit + corner, far / unit + corner
        near = np.clip(anchors[at], low, far)
        if np.hypot(*(near - anchors[at])) > _LEADER:
            panel.lines([[ends[at], near / unit + corner]], colors=GREY, linewidths=0.6, zorder=3)
        panel.boxes(left, right, bottom, top, facecolors="white", alpha=0.7, zorder=3.5)
        panel.word(trail.name, left, bottom, dy=tall / 2, colour=_dark(colour))


def _dense(line: Floats) -> Floats:
    """Many points on a line through a few [m, 2]."""
    at = np.linspace(0, max(len(line) - 1, 0), 80)
    return np.stack([np.interp(at, np.arange(len(line)), axis) for axis in line.T], axis=1) if len(line) else line


def _dark(colour: str) -> str:
    """The colour, dark enough for words on white."""
    return "#" + "".join(f"{int(0.62 * int(colour[i : i + 2], 16)):02x}" for i in (1, 3, 5))


def _seconds(costs: Sequence[Sequence[float]], source: str) -> Scale:
    ends: list[float] = [each[-1] for each in costs if each[-1] > 0]
    if ends and max(ends) > _FAR * min(ends):
        return _log_scale(costs, f"time in s, {source} (log)", lambda value: f"{value:g}")
    longest = max(ends, default=1.0)
    factor, unit = unit_for(longest)
    marks = [(mark / factor, f"{mark:g}") for mark in ticks(0.0, longest * factor, 6)]
    return Scale(0.0, 1.25 * longest, marks, False, f"time in {unit}, {source}")


def _log_scale(costs: Sequence[Sequence[float]], label: str, text: Callable[[float], str]) -> Scale:
    """From the cheapest end's last stretch to the dearest end; a cost of nothing stands by itself at the left."""
    ends = [each[-1] for each in costs if each[-1] > 0]
    low, high = (math.log10(min(ends)) - 0.7, math.log10(max(ends)) + 0.45) if ends else (0.0, 1.0)
    factors = (1, 2, 5) if high - low < 2 else (1,)
    values = [f * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for f in factors]
    marks = [(math.log10(value), text(value)) for value in values if low <= math.log10(value) <= high]
    if all(each[-1] > 0 for each in costs):
        return Scale(low, high, marks, True, label)
    zero = low - 0.17 * (high - low)
    return Scale(zero - 0.08 * (high - low), high, [(zero, "0"), *marks], True, label, zero, low)


# -- Where the names go: beside their points, none on top of another.

_GAP = 7.0  # points between a marker's middle and its name
_STEP = 4.0  # of the lattice of other places
_CROSSING = 3.0  # points of distance that lying on one point of a line counts as much as
_OFF_SIDE = 6.0  # points of distance that a place of the lattice counts as further than those right beside the anchor


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
        low, penalty = _candidates(at[k], wide[k], height, room)
        boxes = np.concatenate([low, low + np.array([wide[k], height])], axis=1)
        hidden = _overlap(boxes, taken).sum(axis=1)
        distance = np.hypot(*(np.clip(at[k], boxes[:, :2], boxes[:, 2:]) - at[k]).T)
        best = np.argmin(distance + penalty + _CROSSING * under(boxes) + 1e6 * hidden)
        corners[k] = low[best]
        taken = np.concatenate([taken, boxes[best][None]])
    return corners


def _candidates(at: Floats, width: float, height: float, room: tuple[float, float]) -> tuple[Floats, Floats]:
    """Lower left corners [c, 2]: right, left, above and below the anchor, then a lattice; and penalties [c]."""
    x, y = at
    beside = [(x + _GAP, y - height / 2), (x - _GAP - width, y - height / 2)]
    beside += [(x - width / 2, y + _GAP), (x - width / 2, y - _GAP - height)]
    across, up = max(room[0] - width, 0.0), max(room[1] - height, 0.0)
    lattice = np.mgrid[0 : across + 1e-9 : _STEP, 0 : up + 1e-9 : _STEP].reshape(2, -1).T
    every = np.concatenate([beside, lattice])
    penalty = np.where(np.arange(len(every)) < len(beside), 0.0, _OFF_SIDE)
    fits = ((every >= 0) & (every <= (across, up))).all(axis=1)
    return every[fits], penalty[fits]


def _counted(points: Floats, room: tuple[float, float]) -> Callable[[Floats], Floats]:
    """A function that counts how many of `points` [m, 2] lie in each of some boxes [c, 4], by a summed-area table."""
    edges = [np.arange(int(length) + 2) for length in room]  # cells of one point
    cells, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=edges)
    table = np.pad(cells, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    most = np.array(table.shape) - 1

    def count(boxes: Floats) -> Floats:
        left, bottom = np.clip(np.floor(boxes[:, :2] - 1).astype(int), 0, most).T
        right, top = np.clip(np.ceil(boxes[:, 2:] + 1).astype(int), 0, most).T
        inside: Floats = table[right, top] - table[left, top] - table[right, bottom] + table[left, bottom]
        return inside

    return count


def _overlap(boxes: Floats, others: Floats) -> Floats:
    """The area that each of `boxes` [c, 4] shares with each of `others` [m, 4], [c, m]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    area: Floats = np.clip(high - low, 0.0, None).prod(axis=2)
    return area
