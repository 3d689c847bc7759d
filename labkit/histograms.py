"""Pictures of whole numbers: how often each of them occurs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from labkit.panel import CYCLE, INK, Panel, Picture

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
