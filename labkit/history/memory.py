"""Memory of a run: what each peer held in one of its rounds, as formulas predict it and as it was counted."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

import numpy as np

from labkit.costs.memory import Memory
from labkit.history.lanes import MOST_LANES
from labkit.plots.bars import time_panel
from labkit.plots.panel import Picture
from labkit.plots.style import DASHED, MEMORY
from labkit.text import Table, amount

KINDS = ("parameters", "gradients", "optimizer", "activations", "buffers")


@dataclass(frozen=True, repr=False)
class MemoryLedger:
    """Bytes of each peer, `predicted` and `measured` by counting live tensors, and `lanes` of them over the round.

    Measured parameters and gradients are the whole ones where a peer had all of them at once, with its own part counted
    as the optimiser's then, as the paper counts the copy that is stepped (arXiv:1910.02054, §3.1). Activations are what
    else lived at the peak, so that `total` is the peak. Frozen weights are among the buffers.
    """

    measured: tuple[Memory, ...]
    predicted: tuple[Memory, ...]
    lanes: tuple[tuple[tuple[float, float], ...], ...]  # of each peer: seconds since the round began, and bytes

    def table(self) -> Table:
        """Each peer's bytes by what for, measured, with the prediction in brackets."""
        rows = [
            [str(peer), *(_both(getattr(m, kind), getattr(p, kind)) for kind in (*KINDS, "total"))]
            for peer, (m, p) in enumerate(zip(self.measured, self.predicted, strict=True))
        ]
        return Table(["peer", *(kind.replace("optimizer", "optimiser") for kind in KINDS), "peak"], rows)

    def plot(self) -> Picture:
        """A lane for each peer over the seconds of the round: how much lived, and how high it goes by the formula."""
        shown = self.lanes[:MOST_LANES]
        span = max((lane[-1][0] for lane in shown if lane), default=0.0)
        known = [it.total for it in (*self.measured, *self.predicted) if not isnan(it.total)]
        top, names = (
            max(known, default=0.0) or 1.0,
            [f"peer {k} · {amount(self.measured[k].total)}" for k in range(len(shown))],
        )
        panel = time_panel(names, span, title="What each peer held in one round")
        for row, (lane, measured, predicted) in enumerate(zip(shown, self.measured, self.predicted, strict=False)):
            at, size = np.array(lane or [(0.0, 0.0)]).T
            until, floor = np.append(at[1:], panel.xlim[1]), row + 0.42
            for high, kind in ((size, "activations"), (np.minimum(size, measured.states), "parameters")):
                panel.boxes(
                    at, until, floor - 0.84 * high / top, floor, facecolors=MEMORY[kind], linewidths=0, zorder=2
                )
            if not isnan(predicted.total):
                line = floor - 0.84 * predicted.total / top
                panel.lines([np.array([(0.0, line), (panel.xlim[1], line)])], **DASHED)
        keys = [(MEMORY["parameters"], False, "states"), (MEMORY["activations"], False, "activations")]
        panel.legend(keys, "measured, live tensors counted; dashed: the peak by the formula")
        return panel.finish(f"Memory of {len(shown)} peers over one round; {self!r}")

    def __repr__(self) -> str:
        most = max(self.measured, key=lambda it: it.total)
        return f"MemoryLedger of {len(self.measured)} peers, the fullest: {most!r}"


def _both(measured: float, predicted: float) -> str:
    return f"{amount(measured)} (–)" if isnan(predicted) else f"{amount(measured)} ({amount(predicted)})"
