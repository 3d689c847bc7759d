"""What staleness makes of training: peers that descend one slope, by gradients of weights that they read before.

The slope is that of a linear classifier of real handwritten digits under the squared error, f(W) = ‖XW − Y‖² / 2N. It
is exactly quadratic, so that the law of the largest learning rate speaks of it; in the eigenvectors of XᵀX / N, whose
eigenvalues are scaled to a largest one of 1, each gradient is a product: ∇f(W) = λ (W − W*).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from labkit.data import load
from labkit.engines.pace import Pace
from labkit.tasks.sync import ASP, BSP, SSP

Floats = npt.NDArray[np.float64]
FAR = 1e3  # of the loss at the start: beyond that it diverges


@dataclass(frozen=True)
class Descent:
    """What happened at the server, push by push, in the order in which it took them; all [pushes].

    `staleness` are the updates that each had missed, `peer` whose they were, `seconds` when they were taken, and `loss`
    how far above the least the weights then were, as a share of what it was at the start.
    """

    staleness: npt.NDArray[np.int64]
    peer: npt.NDArray[np.int64]
    seconds: Floats
    loss: Floats

    @property
    def diverges(self) -> bool:
        """Whether the loss ends above where it started, or rises out of sight."""
        return len(self.loss) > 0 and not self.loss[-1] < 1


def descend(seconds_per_step: Sequence[float], policy: BSP | SSP | ASP, rate: float, until: float) -> Descent:
    """Let each of n peers push gradients to a server for so many seconds; each push moves it by η/n.

    As in `ParameterServer`, pushes of one moment come in the order of the peers, and under BSP those of a round are
    taken together. `rate` is η in units of one over the largest curvature.
    """
    curvature, start = _slope()
    peers = range(len(seconds_per_step))
    step = rate / len(peers) * curvature
    height = np.sqrt(curvature / np.vdot(start, curvature * start))  # whose square makes the loss a share of the first
    weights, own = start, dict.fromkeys(peers, start)
    seen, pace = dict.fromkeys(peers, 0), Pace(peers, policy.bound)
    queue = [(float(seconds_per_step[peer]), peer) for peer in peers]
    queue.sort()
    taken: list[tuple[int, int, float, float]] = []
    held: list[tuple[int, int]] = []  # peer, staleness
    version = 0
    while queue and queue[0][0] <= until:
        now, peer = heappop(queue)
        held.append((peer, version - seen[peer]))
        if policy.bound or len(held) == len(peers):
            for who, staleness in sorted(held):
                weights = weights - step * own[who]
                version += 1
                taken.append((staleness, who, now, float(np.square(height * weights).sum())))
            held.clear()
        for other in pace.finish(peer):
            own[other], seen[other] = weights, version
            heappush(queue, (now + seconds_per_step[other], other))
        if taken and not taken[-1][-1] < FAR:
            break
    columns = [np.array(column) for column in zip(*taken, strict=True)] or [np.empty(0)] * 4
    return Descent(columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2], columns[3])


@cache
def _slope() -> tuple[Floats, Floats]:
    """Eigenvalues [D, 1] of XᵀX / N, the largest scaled to 1, and W − W* [D, C] at W = 0 in its eigenvectors."""
    data = load("digits")
    x, y = np.asarray(data.x, dtype=np.float64), np.asarray(data.y)
    x = np.column_stack([x, np.ones(len(x))])
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    values = np.maximum(values, 0.0)
    wanted = vectors.T @ (x.T @ np.eye(int(y.max()) + 1)[y] / len(x))  # λ W*
    best = np.divide(wanted, values[:, None], out=np.zeros_like(wanted), where=values[:, None] > 1e-9)
    return values[:, None] / values.max(), -best
