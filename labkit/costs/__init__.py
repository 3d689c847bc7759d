"""Costs: pure arithmetic of links, speed-up, staleness, checkpoints, and the Pareto frontier.

>>> import labkit as lk
>>> lk.costs.amdahl(0.75, 3)
2.0
"""

from labkit.costs.checkpoints import Span, best_interval, lost_share, replay, slowdown
from labkit.costs.link import Link
from labkit.costs.pareto import pareto
from labkit.costs.speedup import amdahl, gustafson
from labkit.costs.staleness import stable_rate, stalest

__all__ = [
    "Link",
    "Span",
    "amdahl",
    "best_interval",
    "gustafson",
    "lost_share",
    "pareto",
    "replay",
    "slowdown",
    "stable_rate",
    "stalest",
]
