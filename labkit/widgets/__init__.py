"""Widgets: one for each concept of the course that has numbers to put on sliders.

Each function makes a view; beside it in its file stands a pure `compute()` of the same numbers.
"""

from labkit.widgets.all_reduce import all_reduce
from labkit.widgets.asking import ask
from labkit.widgets.assignment import assignment
from labkit.widgets.client_drift import drift
from labkit.widgets.compression import compression
from labkit.widgets.data_skew import skew
from labkit.widgets.drawn_topology import topology
from labkit.widgets.failures import failure
from labkit.widgets.label_noise import label_noise
from labkit.widgets.landscape import landscape
from labkit.widgets.leakage import leakage
from labkit.widgets.messages import step_through
from labkit.widgets.model_size import model_scale
from labkit.widgets.mutual_learning import mutual
from labkit.widgets.pipelining import pipeline
from labkit.widgets.planning import planner
from labkit.widgets.scaling import speedup
from labkit.widgets.scheduling import schedule
from labkit.widgets.sharding import zero
from labkit.widgets.slicing import tensor
from labkit.widgets.splitting import split
from labkit.widgets.stale_gradients import staleness
from labkit.widgets.synchronization import synchronize
from labkit.widgets.traffic import communication

__all__ = [
    "all_reduce",
    "ask",
    "assignment",
    "communication",
    "compression",
    "drift",
    "failure",
    "label_noise",
    "landscape",
    "leakage",
    "model_scale",
    "mutual",
    "pipeline",
    "planner",
    "schedule",
    "skew",
    "speedup",
    "split",
    "staleness",
    "step_through",
    "synchronize",
    "tensor",
    "topology",
    "zero",
]


def __dir__() -> list[str]:
    return __all__
