"""Ticks: what each stage of a pipeline does in each tick, and how much it keeps."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np

from labkit.plots.bars import row_panel
from labkit.plots.panel import Picture
from labkit.plots.style import ADJOINING, ALARM, COLOURS as KINDS, CYCLE, GREY

COLOURS = {"F": CYCLE[0], "B": CYCLE[1], "W": CYCLE[9]}
NAMES = {"F": "forward", "B": "back", "W": "gradients of weights"}


def ticks(
    rows: Sequence[Sequence[tuple[str, str] | None]],
    kept: Sequence[int],
    *,
    most: int | None = None,
    faulty: Set[tuple[int, int | None]] = frozenset(),
    title: str = "",
    alt: str = "",
) -> Picture:
    """Draw a row for each stage: of each tick its kind ("F", "B", "W") and the word in its box, or None for none.

    Behind a row stands how many microbatches it `kept` open, as an alarm above `most`; `faulty` (stage, tick) are
    framed.
    """
    length, at = len(rows[0]), np.arange(len(rows))
    panel = row_panel([f"stage {k}" for k in range(len(rows))], (0.0, 1.14 * length), title=title)
    panel.boxes(0, length, at - 0.4, at + 0.4, facecolors=KINDS["wait"], zorder=1)
    for kind, colour in COLOURS.items():  # each in one collection: fast enough to follow a slider
        found = [(s, t) for s, row in enumerate(rows) for t, op in enumerate(row) if op is not None and op[0] == kind]
        if found:
            stage, tick = np.array(found).T
            panel.boxes(tick, tick + 1, stage - 0.4, stage + 0.4, facecolors=colour, **ADJOINING)
    for stage, row in enumerate(rows):
        for tick, op in enumerate(row):
            if op is not None and panel.fits(op[1], 1.0, 0.8):
                panel.word(op[1], tick + 0.5, stage, align="centre")
        panel.word(f"{kept[stage]} open", length, stage, dx=6, colour=ALARM if kept[stage] > (most or 1e9) else GREY)
    for stage, at_fault in faulty:
        if at_fault is not None:
            panel.boxes(at_fault + 0.04, at_fault + 0.96, stage - 0.38, stage + 0.38, facecolors="none",
                        edgecolors=ALARM, linewidths=2.2, zorder=4)  # fmt: skip
    panel.x_axis("tick", [(tick + 0.5, str(tick)) for tick in range(length)], grid=False)
    there = [kind for kind in COLOURS if any(op is not None and op[0] == kind for row in rows for op in row)]
    keys = [*((COLOURS[kind], False, NAMES[kind]) for kind in there), (KINDS["wait"], False, "bubble")]
    panel.legend(keys, "predicted")
    return panel.finish(alt or title)
