"""The picture of a topology: peers as dots, their links as lines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.panel import CYCLE, INK, Panel, Picture

_TALL = 2.6  # inches
_NAMED = 32  # peers, up to which each dot has its number
_ARROWS = 64  # links, up to which their direction is shown where it matters

Points = NDArray[np.float64]
Pairs = NDArray[np.int64]


def draw(title: str, peers: int, edges: Pairs, grid: tuple[int, ...] | None) -> Picture:
    """Draw `peers` dots and their `edges` (source, target); those of a plane `grid` in rows, others in a circle."""
    plane = grid is not None and len(grid) == 2 and min(grid) > 1
    at = _in_rows(grid) if plane and grid is not None else in_a_circle(peers, edges)
    pad = 0.6 if plane else 0.24  # for links over the edge, or for the dots
    low, high = float(at[:, 1].min()) - pad, float(at[:, 1].max()) + pad
    half = (high - low) / 2 * 6.8 / _TALL  # as many inches to one unit across as up
    middle = float(at[:, 0].min() + at[:, 0].max()) / 2
    panel = Panel(_TALL, (middle - half, middle + half), (low, high), title=title, left=0.2, bottom=0.1)
    lines = _segments(at, edges, wrapped=plane)
    style: dict[str, Any] = {"colors": CYCLE[0], "alpha": 0.75 if len(lines) < 500 else 0.25, "zorder": 2}
    panel.lines(lines, linewidths=1.3 if len(lines) < 200 else 0.6, **style)
    if len(edges) <= _ARROWS and not _both_ways(edges):
        _arrows(panel, at, edges)
    named = peers <= _NAMED
    size = 190 if named else max(2.0, 30000 / (peers + 1000))
    panel.ax.scatter(
        at[:, 0],
        at[:, 1],
        s=size,
        color="white",
        edgecolors=CYCLE[0],
        linewidths=1.4 if named else 0.4,
        zorder=3,
        clip_on=False,
    )
    for peer, (x, y) in enumerate(at.tolist() if named else []):
        panel.word(str(peer), x, y, align="centre", size=8, colour=INK)
    return panel.finish(title)


def in_a_circle(peers: int, edges: Pairs) -> Points:
    """From the top clockwise; whoever is linked to all others, while not everyone is, stands in the middle."""
    degrees = np.bincount(edges[:, 1], minlength=peers)
    hub = degrees == peers - 1
    inside = hub if hub.sum() == 1 and peers > 2 else np.zeros(peers, dtype=bool)
    angle = np.zeros(peers)
    angle[~inside] = 2 * np.pi * np.arange((~inside).sum()) / max(1, (~inside).sum())
    points: Points = np.stack([np.sin(angle), np.cos(angle)], axis=-1) * (~inside)[:, None]
    return points


def _in_rows(grid: tuple[int, ...]) -> Points:
    rows, columns = np.unravel_index(np.arange(np.prod(grid)), grid)
    return np.stack([columns, -rows], axis=-1).astype(float)


def _segments(at: Points, edges: Pairs, wrapped: bool) -> list[list[tuple[float, float]]]:
    """One line for each link; on a plane grid a link over the edge leaves it on both sides."""
    ends = np.unique(np.sort(edges, axis=1), axis=0)
    lines = []
    for a, b in zip(at[ends[:, 0]].tolist(), at[ends[:, 1]].tolist(), strict=True):
        step = (b[0] - a[0], b[1] - a[1])
        if wrapped and max(map(abs, step)) > 1:
            out = (np.sign(step[0]) * 0.45, np.sign(step[1]) * 0.45)
            lines += [[(a[0], a[1]), (a[0] - out[0], a[1] - out[1])], [(b[0], b[1]), (b[0] + out[0], b[1] + out[1])]]
        else:
            lines.append([(a[0], a[1]), (b[0], b[1])])
    return lines


def _both_ways(edges: Pairs) -> bool:
    return {(a, b) for a, b in edges.tolist()} == {(b, a) for a, b in edges.tolist()}


def _arrows(panel: Panel, at: Points, edges: Pairs) -> None:
    """A small head on each link, two thirds of the way to its target."""
    for source, target in edges.tolist():
        a, b = at[source], at[target]
        tip, back = a + 0.68 * (b - a), a + 0.6 * (b - a)
        panel.ax.annotate(
            "", tip, back, arrowprops={"arrowstyle": "-|>", "color": CYCLE[0], "lw": 0, "mutation_scale": 9}, zorder=2
        )
