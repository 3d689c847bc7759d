"""Costs: pure arithmetic of links, speed-up, staleness, checkpoints, transformers and how to split them, and Pareto.

>>> import labkit as lk
>>> lk.costs.amdahl(0.75, 3)
2.0
"""

from labkit.costs.checkpoints import Span, best_interval, lost_share, replay, slowdown
from labkit.costs.link import Link
from labkit.costs.memory import Memory, states
from labkit.costs.pareto import pareto
from labkit.costs.pipelines import Op, PipelineSketch, PipelineTable, bubble
from labkit.costs.planner import Layout, Layouts, Machines, layout, plan
from labkit.costs.speedup import amdahl, gustafson
from labkit.costs.staleness import stable_rate, stalest
from labkit.costs.training import Bill, training_flops
from labkit.costs.transformer import PRESETS, Transformer

__all__ = [
    "PRESETS",
    "Bill",
    "Layout",
    "Layouts",
    "Link",
    "Machines",
    "Memory",
    "Op",
    "PipelineSketch",
    "PipelineTable",
    "Span",
    "Transformer",
    "amdahl",
    "best_interval",
    "bubble",
    "gustafson",
    "layout",
    "lost_share",
    "pareto",
    "plan",
    "replay",
    "slowdown",
    "stable_rate",
    "stalest",
    "states",
    "training_flops",
]


def __dir__() -> list[str]:
    return __all__
