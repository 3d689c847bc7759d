"""The Pareto frontier of gains against costs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def pareto(costs: ArrayLike, gains: ArrayLike) -> tuple[int, ...]:
    """The indices of the points on the Pareto frontier, by ascending cost; `costs` and `gains` are [n].

    A point is dominated by one that costs no more and gains no less, and is better in one of the two (V. Pareto,
    Manuale di economia politica, 1906); equal points do not dominate each other. Points that are not finite are left
    out.

    >>> pareto(costs=[1, 2, 3, 3], gains=[0.8, 0.7, 0.9, 0.95])
    (0, 3)
    """
    cost, gain = np.asarray(costs, dtype=float), np.asarray(gains, dtype=float)
    finite = np.isfinite(cost) & np.isfinite(gain)
    cheaper, better = cost[:, None] <= cost, gain[:, None] >= gain  # [j, i]: j is no worse than i
    dominates = cheaper & better & ~(cheaper.T & better.T) & finite[:, None]
    best = np.flatnonzero(finite & ~dominates.any(axis=0))
    return tuple(int(i) for i in best[np.lexsort((best, gain[best], cost[best]))])
