"""Learning curves: training loss and test accuracy side by side, each peer faint, their mean bold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.plots.panel import CYCLE, DPI, GREY, WIDTH, Panel, Picture

_MOST_POINTS, _MOST_LINES = 300, 16
_TITLED, _PLAIN = 0.75, 0.42  # inches above the panels
_TALL, _LEFT, _BOTTOM = 1.6, 0.62, 0.55  # inches: the panels' height, and what is left and below

Curve = tuple[Sequence[int], Sequence[Sequence[float]]]  # rounds [R], and one value per peer [R][n]


def learning_curves(
    loss: Curve, accuracy: Curve, *, rounds: int | None = None, title: str = "", note: str = ""
) -> Picture:
    """Draw loss and accuracy over the rounds; a live picture's axis is `rounds` halved until the curve fills half."""
    last = max([1, *loss[0], *accuracy[0]])
    end = float(rounds or last)
    while end / 2 >= last:
        end /= 2
    left, right = _axes(_TITLED if title else _PLAIN)
    losses, shares = _thin(loss), _thin(accuracy)
    top = 1.05 * max(losses[1][np.isfinite(losses[1])], default=1.0)
    first = Panel(_TALL, (0, end), (0, top or 1.0), ax=left)
    _draw(first, losses, CYCLE[0], "training loss")
    low = float(np.floor(10 * shares[1].min()) / 10) if shares[1].size else 0.0
    second = Panel(_TALL, (0, end), (min(low, 0.9), 1.0), ax=right)
    _draw(second, shares, CYCLE[2], "test accuracy")
    if title:
        first.word(title, 0, first.ylim[1], dx=-28, dy=30, size=10.5)
    if note:
        second.word(note, end, second.ylim[1], dy=10, align="right", colour=GREY)
    first.finish("")
    return second.finish(f"Training loss and test accuracy{f' of {title}' if title else ''} ({note})")


def _draw(panel: Panel, curve: tuple[NDArray[Any], NDArray[Any]], colour: str, label: str) -> None:
    panel.y_axis(label)
    panel.x_axis("round")
    at, values = curve
    if not len(at):
        return
    peers = values.shape[1]
    if 1 < peers <= _MOST_LINES:
        lines = [list(zip(at, values[:, k], strict=True)) for k in range(peers)]
        panel.lines(lines, colors=colour, linewidths=0.7, alpha=0.35, zorder=2)
    mean = list(zip(at, values.mean(axis=1), strict=True))
    panel.lines([mean], colors=colour, linewidths=1.8, zorder=3)
    wide, tall = panel.xlim[1] / 300, (panel.ylim[1] - panel.ylim[0]) / 110
    x, y = mean[-1]
    panel.boxes(x - wide, x + wide, y - tall, y + tall, facecolors=colour, zorder=4)


def _thin(curve: Curve) -> tuple[NDArray[Any], NDArray[Any]]:
    """At most `_MOST_POINTS` points, each the mean of its stretch, the last one as it is."""
    at, values = np.asarray(curve[0], dtype=float), np.asarray(curve[1], dtype=float)
    values[~np.isfinite(values)] = np.nan  # a gap in the line
    if len(at) <= _MOST_POINTS:
        return at, values
    edges = np.linspace(0, len(at), _MOST_POINTS, dtype=int)[:-1]
    size = np.diff([*edges, len(at)])
    means = np.add.reduceat(values, edges, axis=0) / size[:, None]
    middles = np.add.reduceat(at, edges) / size
    return np.append(middles, at[-1]), np.vstack([means, values[-1:]])


def _axes(top: float) -> tuple[Any, Any]:
    """Two coordinate systems side by side, `top` inches below the upper edge of their figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tall = _TALL + _BOTTOM + top
    figure = Figure(figsize=(WIDTH, tall), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    width = (WIDTH - 2 * _LEFT - 0.35) / 2
    lefts = (_LEFT, 2 * _LEFT + width + 0.15)
    first, second = (figure.add_axes((x / WIDTH, _BOTTOM / tall, width / WIDTH, _TALL / tall)) for x in lefts)
    return first, second
