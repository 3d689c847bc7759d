"""The picture of a barrier: peers in a circle, arrows between them, and words beside each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.exchange.message import Transfer
from labkit.exchange.topology_picture import in_a_circle
from labkit.panel import CYCLE, GREY, Panel, Picture, amount, text_width

_TALL = 3.0  # inches
_NAMED, _WORDY = 32, 10  # peers, up to which each dot has its number, and its two lines of words
_ARROWS, _LABELS = 96, 12  # transfers, up to which each is an arrow (not a line), and each arrow has its bytes
_OUT, _IN = CYCLE[0], CYCLE[6]  # what is sent, and what is received

Points = NDArray[np.float64]


class Peer(NamedTuple):
    """A peer's number, and the words on what it sends and what it gets."""

    number: int
    sends: str
    gets: str


def draw(
    peers: Sequence[Peer], transfers: Sequence[Transfer], *, title: str, formula: str, note: str, alt: str
) -> Picture:
    """Draw the peers and who sends how many bytes to whom; whoever is none of the peers is a server in the middle."""
    place = {peer.number: k for k, peer in enumerate(peers)}
    ways: dict[tuple[int, int], float] = {}
    for source, target, nbytes in transfers:
        ends = (place.get(source, len(peers)), place.get(target, len(peers)))
        ways[ends] = ways.get(ends, 0.0) + nbytes
    at = _places(len(peers), ways)
    half = 1.35 * 6.8 / _TALL
    panel = Panel(_TALL, (-half, half), (-1.35, 1.35), title=title, left=0.2, bottom=0.42)
    panel.formula(formula, half, panel.ylim[1], dy=29)
    panel.word(note + _each(ways), -half, panel.ylim[0], dy=-20, colour=GREY)
    _arrows(panel, at, ways)
    _dots(panel, at, [str(peer.number) for peer in peers] + ["server"] * (len(at) - len(peers)))
    if len(peers) <= _WORDY:
        for peer, point in zip(peers, at, strict=False):
            _words(panel, peer, point)
    return panel.finish(alt)


def _places(peers: int, ways: Mapping[tuple[int, int], float]) -> Points:
    """Where the peers stand [n, 2], and in the last row the server, if there is one."""
    among = np.array([ends for ends in ways if max(ends) < peers], dtype=np.int64).reshape(-1, 2)
    at = in_a_circle(peers, among) if peers != 2 else np.array([[-1.0, 0.0], [1.0, 0.0]])
    server = any(max(ends) == peers for ends in ways)
    return np.vstack([at, np.zeros((int(server), 2))])


def _each(ways: Mapping[tuple[int, int], float]) -> str:
    """The bytes of the arrows, where they are too many to say it at each."""
    if len(ways) <= _LABELS:
        return ""
    low, high = min(ways.values()), max(ways.values())
    return f"; {amount(high) if low == high else f'{amount(low)} to {amount(high)}'} each way"


def _arrows(panel: Panel, at: Points, ways: Mapping[tuple[int, int], float]) -> None:
    """An arrow for each way, as thick as it carries much beside the others; two that meet are bent, or one if many."""
    if len(ways) > _ARROWS:
        lines = [[tuple(at[source]), tuple(at[target])] for source, target in ways]
        panel.lines(lines, colors=_OUT, linewidths=0.4, alpha=0.15, zorder=2)
        return
    few, most = len(ways) <= _LABELS, max(ways.values(), default=0.0) or 1.0
    for (source, target), nbytes in ways.items():
        back = ways.get((target, source))
        if back == nbytes and not few and source > target:
            continue
        arrow: dict[str, Any] = {
            "arrowstyle": "-|>" if few or back != nbytes else "<|-|>",
            "color": _OUT,
            "linewidth": (0.5 + 1.3 * nbytes / most) / (1 if few else 2),
            "mutation_scale": 11 if few else 8,
            "shrinkA": 11.0 if len(at) <= _NAMED else 4.0,
            "shrinkB": 11.0 if len(at) <= _NAMED else 4.0,
            "connectionstyle": f"arc3,rad={0.14 if few and back is not None else 0.0}",
        }
        panel.ax.annotate("", tuple(at[target]), tuple(at[source]), arrowprops=arrow, zorder=2, annotation_clip=False)
        if few and (back is None or source < target):
            _label(panel, (at[source] + at[target]) / 2, nbytes, back)


def _label(panel: Panel, middle: Points, there: float, back: float | None) -> None:
    """The bytes of an arrow; of a pair of them once where they are the same."""
    text = amount(there) if back is None else f"⇄ {amount(there)}"
    if back is not None and back != there:
        text = f"{amount(there)} ⇄ {amount(back)}"
    half, tall = 36 * text_width(text) / panel.x_points, 5.5 / panel.y_points
    x, y = middle
    panel.boxes(x - half, x + half, y - tall, y + tall, facecolors="white", alpha=0.85, zorder=2.5)
    panel.word(text, x, y, align="centre", size=8, colour=GREY)


def _dots(panel: Panel, at: Points, names: Sequence[str]) -> None:
    named = len(at) <= _NAMED
    panel.ax.scatter(
        at[:, 0],
        at[:, 1],
        s=260 if named else 12,
        color="white",
        edgecolors=_OUT,
        linewidths=1.6 if named else 0.6,
        zorder=3,
        clip_on=False,
    )
    for name, (x, y) in zip(names, at.tolist(), strict=True):
        if named:
            panel.word(name, x, y, align="centre", size=9 if len(name) < 3 else 6)


def _words(panel: Panel, peer: Peer, point: Points) -> None:
    """What the peer sends and gets: outwards of its dot, or above the dot in the middle."""
    x, y = point
    if abs(x) > 0.1:
        align, dx, dy = ("left", 16.0, 0.0) if x > 0 else ("right", -16.0, 0.0)
    elif abs(y) > 0.1:
        align, dx, dy = "centre", 0.0, 24.0 * np.sign(y)
    else:  # between two arms of a star
        align, dx, dy = "left", 14.0, 24.0
    for words, line, colour in ((peer.sends, 6.0, _OUT), (peer.gets, -6.0, _IN)):
        panel.word(words, x, y, dx=dx, dy=dy + line, align=align, colour=colour)
