"""Who is beaten by nobody: the Pareto frontier of gains against costs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def pareto(costs: ArrayLike, gains: ArrayLike) -> tuple[int, ...]:
    """The numbers of the points that no other beats, by ascending cost; `costs` and `gains` are [n].

    A point is beaten by one that costs no more and gains no less, and is better in one of the two (V. Pareto, Manuale
    di economia politica, 1906). Equal points do not beat each other; one that is not finite is beaten by all.

    >>> pareto(costs=[1, 2, 3, 3], gains=[0.8, 0.7, 0.9, 0.95])
    (0, 3)
    """
    cost, gain = np.asarray(costs, dtype=float), np.asarray(gains, dtype=float)
    finite = np.isfinite(cost) & np.isfinite(gain)
    cheaper, richer = cost[:, None] <= cost, gain[:, None] >= gain  # [j, i]: j is no worse than i
    beats = cheaper & richer & ~(cheaper.T & richer.T) & finite[:, None]
    best = np.flatnonzero(finite & ~beats.any(axis=0))
    return tuple(int(i) for i in best[np.lexsort((best, gain[best], cost[best]))])
