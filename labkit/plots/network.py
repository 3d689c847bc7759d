"""Networks: peers as dots, and the links and transfers between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.plots.panel import Panel, Picture, text_width
from labkit.plots.style import CYCLE, GREY, as_text
from labkit.text import amount

Points = NDArray[np.float64]
Pairs = NDArray[np.int64]
_NAMED, _WORDY = 32, 10  # peers, up to which each dot has its number, and its two lines of words
_DIRECTED = 64  # links of a topology, up to which their direction is shown where it matters
_ARROWS, _LABELS = 96, 12  # transfers, up to which each is an arrow (not a line), and each arrow has its bytes
_ACROSS = 6.8  # inches of a panel's width, all but its margins
_OUT, _IN = CYCLE[0], CYCLE[6]  # what is sent, and what is received


def topology(title: str, peers: int, edges: Pairs, grid: tuple[int, ...] | None) -> Picture:
    """Draw `peers` dots and their `edges` (source, target); those of a plane `grid` in rows, others in a circle."""
    plane = grid is not None and len(grid) == 2 and min(grid) > 1
    at = _in_rows(grid) if plane and grid is not None else _in_a_circle(peers, edges)
    pad = 0.6 if plane else 0.24  # for links over the edge, or for the dots
    low, high = float(at[:, 1].min()) - pad, float(at[:, 1].max()) + pad
    half = (high - low) / 2 * _ACROSS / 2.6  # as many inches to one unit across as up
    middle = float(at[:, 0].min() + at[:, 0].max()) / 2
    panel = Panel(2.6, (middle - half, middle + half), (low, high), title=title, left=0.2, bottom=0.1)
    lines = _links(at, edges, wrapped=plane)
    width, alpha = 1.3 if len(lines) < 200 else 0.6, 0.75 if len(lines) < 500 else 0.25
    panel.lines(list(lines), colors=_OUT, linewidths=width, alpha=alpha, zorder=2)
    if len(edges) <= _DIRECTED and set(map(tuple, edges)) != set(map(tuple, edges[:, ::-1])):
        for a, b in at[edges]:  # a small head on each link, two thirds of the way to its target
            _arrow(panel, a + 0.6 * (b - a), a + 0.68 * (b - a), arrowstyle="-|>", lw=0, mutation_scale=9)
    named = peers <= _NAMED
    _dots(panel, at, 190 if named else max(2.0, 30000 / (peers + 1000)), 1.4 if named else 0.4)
    for peer, (x, y) in enumerate(at.tolist() if named else []):
        panel.word(str(peer), x, y, align="centre", size=8)
    return panel.finish(title)


def exchange(
    peers: Mapping[int, tuple[str, str]],
    transfers: Sequence[tuple[int, int, float]],
    *,
    title: str,
    formula: str,
    note: str,
    alt: str,
) -> Picture:
    """Draw the peers in a circle and who sends how many bytes to whom; whoever is no peer is a server in the middle.

    `peers` has, by number, the words on what each sends and on what it gets; `transfers` are (source, target, bytes).
    """
    place = {peer: k for k, peer in enumerate(peers)}
    ways: dict[tuple[int, int], float] = {}
    for source, target, nbytes in transfers:
        ends = (place.get(source, len(peers)), place.get(target, len(peers)))
        ways[ends] = ways.get(ends, 0.0) + nbytes
    at = _with_server(len(peers), ways)
    half = 1.35 * _ACROSS / 3.0
    panel = Panel(3.0, (-half, half), (-1.35, 1.35), title=title, left=0.2, bottom=0.42)
    panel.formula(formula, half, panel.ylim[1], dy=29)
    panel.word(note + _each(ways), -half, panel.ylim[0], dy=-20, colour=GREY)
    _transfers(panel, at, ways)
    named = len(at) <= _NAMED
    _dots(panel, at, 260 if named else 12, 1.6 if named else 0.6)
    for name, (x, y) in zip([*map(str, peers), "server"], at.tolist() if named else [], strict=False):
        panel.word(name, x, y, align="centre", size=9 if len(name) < 3 else 6)
    for words, point in zip(peers.values() if len(peers) <= _WORDY else (), at, strict=False):
        _sends_and_gets(panel, words, point)
    return panel.finish(alt)


def _in_a_circle(peers: int, edges: Pairs) -> Points:
    """From the top clockwise; whoever is linked to all others, while not everyone is, stands in the middle."""
    hub = np.bincount(edges[:, 1], minlength=peers) == peers - 1
    outside = ~hub if hub.sum() == 1 and peers > 2 else np.ones(peers, dtype=bool)
    angle = 2 * np.pi * (np.cumsum(outside) - 1) / max(1, outside.sum())
    points: Points = np.stack([np.sin(angle), np.cos(angle)], axis=-1) * outside[:, None]
    return points


def _in_rows(grid: tuple[int, ...]) -> Points:
    rows, columns = np.unravel_index(np.arange(np.prod(grid)), grid)
    return np.stack([columns, -rows], axis=-1).astype(float)


def _with_server(peers: int, ways: Mapping[tuple[int, int], float]) -> Points:
    """Where the peers stand [n, 2], and in the last row the server, if there is one."""
    among = np.array([ends for ends in ways if max(ends) < peers], dtype=np.int64).reshape(-1, 2)
    at = _in_a_circle(peers, among) if peers != 2 else np.array([[-1.0, 0.0], [1.0, 0.0]])
    server = any(max(ends) == peers for ends in ways)
    return np.vstack([at, np.zeros((int(server), 2))])


def _links(at: Points, edges: Pairs, wrapped: bool) -> Points:
    """Lines [m, 2, 2], one for each link; on a plane grid a link over the edge leaves it on both sides."""
    a, b = at[np.unique(np.sort(edges, axis=1), axis=0)].swapaxes(0, 1)
    over = wrapped & (np.abs(b - a).max(axis=1) > 1)
    out = 0.45 * np.sign(b - a)
    halves = [np.stack(ends, axis=1)[over] for ends in ((a, a - out), (b, b + out))]
    return np.concatenate([np.stack([a, b], axis=1)[~over], *halves])


def _each(ways: Mapping[tuple[int, int], float]) -> str:
    """The bytes of the arrows, where they are too many to say it at each."""
    if len(ways) <= _LABELS:
        return ""
    low, high = min(ways.values()), max(ways.values())
    return f"; {amount(high) if low == high else f'{amount(low)} to {amount(high)}'} each way"


def _transfers(panel: Panel, at: Points, ways: Mapping[tuple[int, int], float]) -> None:
    """An arrow for each way, as thick as it carries much beside the others; two that meet are bent, or one if many."""
    if len(ways) > _ARROWS:
        panel.lines(list(at[list(ways)]), colors=_OUT, linewidths=0.4, alpha=0.15, zorder=2)
        return
    few, most = len(ways) <= _LABELS, max(ways.values(), default=0.0) or 1.0
    room = 11.0 if len(at) <= _NAMED else 4.0  # points, for the dots
    for (source, target), nbytes in ways.items():
        back = ways.get((target, source))
        if back == nbytes and not few and source > target:
            continue
        _arrow(
            panel,
            at[source],
            at[target],
            arrowstyle="-|>" if few or back != nbytes else "<|-|>",
            linewidth=(0.5 + 1.3 * nbytes / most) / (1 if few else 2),
            mutation_scale=11 if few else 8,
            shrinkA=room,
            shrinkB=room,
            connectionstyle=f"arc3,rad={0.14 if few and back is not None else 0.0}",
        )
        if few and (back is None or source < target):
            _bytes(panel, (at[source] + at[target]) / 2, nbytes, back)


def _arrow(panel: Panel, start: Points, end: Points, **style: Any) -> None:
    look = {"color": _OUT, **style}
    panel.ax.annotate("", tuple(end), tuple(start), arrowprops=look, zorder=2, annotation_clip=False)


def _bytes(panel: Panel, middle: Points, there: float, back: float | None) -> None:
    """The bytes of an arrow; of a pair of them once where they are the same."""
    text = amount(there) if back is None else f"⇄ {amount(there)}"
    if back is not None and back != there:
        text = f"{amount(there)} ⇄ {amount(back)}"
    half, tall = text_width(text) / 2 / panel.x_points, 5.5 / panel.y_points
    x, y = middle
    panel.boxes(x - half, x + half, y - tall, y + tall, facecolors="white", alpha=0.85, zorder=2.5)
    panel.word(text, x, y, align="centre", size=8, colour=GREY)


def _dots(panel: Panel, at: Points, size: float, width: float) -> None:
    style: dict[str, Any] = {"color": "white", "edgecolors": _OUT, "linewidths": width, "zorder": 3}
    panel.ax.scatter(at[:, 0], at[:, 1], s=size, clip_on=False, **style)


def _sends_and_gets(panel: Panel, words: tuple[str, str], point: Points) -> None:
    """What a peer sends and gets: outwards of its dot, or above the dot in the middle."""
    x, y = point
    if abs(x) > 0.1:
        align, dx, dy = ("left", 16.0, 0.0) if x > 0 else ("right", -16.0, 0.0)
    elif abs(y) > 0.1:
        align, dx, dy = "centre", 0.0, 24.0 * np.sign(y)
    else:  # between two arms of a star
        align, dx, dy = "left", 14.0, 24.0
    for text, line, colour in zip(words, (6.0, -6.0), (_OUT, _IN), strict=True):
        panel.word(text, x, y, dx=dx, dy=dy + line, align=align, colour=as_text(colour))
