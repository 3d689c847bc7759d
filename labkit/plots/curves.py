"""Curves: numbers against numbers, and the learning curves of a run, each peer faint and their mean bold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.plots.panel import Marks, Panel, Picture, axes
from labkit.plots.style import CYCLE, PLAIN, TITLED

Floats = NDArray[np.float64]
RoundValues = tuple[Sequence[int], Sequence[Sequence[float]]]  # rounds [R], and one value per peer [R][n]
_MOST_POINTS, _MOST_LINES = 300, 16
_MOST_TESTS = 4  # panels besides the training loss
_TESTS = ("accuracy", "test loss")  # on the test set
_TALL, _LEFT = 1.6, 0.62  # inches: the learning curves' height, and what is left of each


def curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    note: str = "",
    marks: Mapping[str, float] | None = None,
    ticks: Marks | None = None,
) -> Picture:
    """Draw one line for each name in `series` (x, y of equal length; points that are not finite leave a gap).

    `marks` are named places on the x axis, drawn as dashed lines; `ticks` are words below it in place of numbers.
    """
    data = {name: (np.asarray(x, dtype=float), np.asarray(y, dtype=float)) for name, (x, y) in series.items()}
    xlim, (low, high) = _range([x for x, _ in data.values()]), _range([y for _, y in data.values()])
    pad = 0.05 * (high - low)
    panel = Panel(2.6, xlim, (low - pad, high + pad), title=title, left=_LEFT)
    panel.x_axis(xlabel, ticks)
    panel.y_axis(ylabel)
    dashes = ("-", "--", "-.", ":")
    for k, (x, y) in enumerate(data.values()):
        style = {"color": CYCLE[k % len(CYCLE)], "linestyle": dashes[k // len(CYCLE) % 4], "linewidth": 1.8}
        panel.ax.plot(x, y, marker="o" if len(x) <= 30 else "", markersize=4, clip_on=False, **style)  # type: ignore[arg-type]
    for name, at in (marks or {}).items():
        panel.mark(name, at)
    panel.legend([(CYCLE[k % len(CYCLE)], False, name) for k, name in enumerate(data)], note)
    return panel.finish(title or f"{ylabel} against {xlabel}: {', '.join(data)}")


def learning_curves(
    loss: RoundValues,
    tests: Mapping[str, RoundValues],
    *,
    rounds: int | None = None,
    title: str = "",
    note: str = "",
    whole: bool = False,
) -> Picture:
    """Draw the training loss and what tests told, by name, over the rounds, side by side.

    Of "client …", tested on data of their own, a band reaches from the lowest to the highest. A live picture's axis is
    `rounds` halved until the curve fills half, unless it is to be `whole`.
    """
    last = max([1, *loss[0], *(at for rounds_tested, _ in tests.values() for at in rounds_tested)])
    end = float(rounds or last)
    while end / 2 >= last and not whole:
        end /= 2
    shown = dict(list(tests.items())[:_MOST_TESTS])
    left, *others = axes(_TALL, TITLED if title else PLAIN, 0.48, _LEFT, columns=1 + len(shown))
    losses = _thin(loss)
    panels = [Panel(_TALL, (0, end), (0, _top(losses[1])), title=title, left=_LEFT, ax=left)]
    _draw_peers(panels[0], losses, CYCLE[0], "training loss")
    names = ["training loss"]
    for k, (name, curve) in enumerate(shown.items()):
        values = _thin(curve)
        names.append(f"test {name.removeprefix('test ')}" if name in _TESTS else name)
        panels.append(Panel(_TALL, (0, end), _limits(name, values[1]), ax=others[k]))
        _draw_peers(panels[-1], values, CYCLE[(2 + k) % len(CYCLE)], names[-1], band=name.startswith("client "))
    panels[-1].legend([], note)
    for panel in panels[:-1]:
        panel.finish("")
    said = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return panels[-1].finish(f"{said[:1].upper()}{said[1:]}{f' of {title}' if title else ''} ({note})")


def _top(values: Floats) -> float:
    return 1.05 * max(values[np.isfinite(values)], default=1.0) or 1.0


def _limits(name: str, values: Floats) -> tuple[float, float]:
    """From where to where the axis of a measure goes: shares up to one, all else around what there is."""
    if name.endswith("accuracy"):
        low = float(np.floor(10 * np.nanmin(values)) / 10) if np.isfinite(values).any() else 0.0
        return min(low, 0.9), 1.0
    low, high = _range([values.reshape(-1)])
    return (0.0, _top(values)) if low >= 0 else (low - 0.05 * (high - low), high + 0.05 * (high - low))


def _draw_peers(panel: Panel, curve: tuple[Floats, Floats], colour: str, label: str, band: bool = False) -> None:
    """Each peer's curve, their mean, and a dot at its end."""
    panel.y_axis(label)
    panel.x_axis("round")
    at, values = curve
    if not len(at):
        return
    if band:
        panel.ax.fill_between(at, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15, linewidth=0)
    if 1 < values.shape[1] <= _MOST_LINES:
        each = [np.stack([at, peer], axis=1) for peer in values.T]
        panel.lines(each, colors=colour, linewidths=0.7, alpha=0.35, zorder=2)
    style: dict[str, Any] = {"color": colour, "linewidth": 1.8, "marker": "s", "markersize": 3.5, "markevery": [-1]}
    panel.ax.plot(at, values.mean(axis=1), clip_on=False, zorder=3, **style)


def _thin(curve: RoundValues) -> tuple[Floats, Floats]:
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


def _range(values: Sequence[Floats]) -> tuple[float, float]:
    joined = np.concatenate([*values, np.empty(0)])
    finite = joined[np.isfinite(joined)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
