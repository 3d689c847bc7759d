"""Check: exercises that check themselves, `lk.check.<exercise>(your_function)`.

Each returns `Passed`, or raises CheckFailed with one sentence, which a notebook shows as a card: the input, what came
back, what was expected, a hint, and never the answer. Where an exercise has several properties, each has its points.
Besides the fixed cases there are fresh ones, drawn at random from a `seed` that the card names; an answer may take ten
seconds for a case.

>>> from labkit import check
>>> check.speedup(lambda serial, parallel, workers: (serial / parallel, serial / parallel / workers))
✓ speedup: 25 cases right

`lk.check.algorithm(mine)` does the same with an algorithm of one's own.
"""

from typing import TYPE_CHECKING, Any

from labkit.check.answers import Passed
from labkit.check.choices import choices, unbeaten
from labkit.check.claims import CLAIMS, cases, evidence
from labkit.check.clients import fair_rates, fedavg_end, fednova_step
from labkit.check.clusters import guarded, open_doors
from labkit.check.large_models import (
    adjoint,
    pipeline,
    pipeline_bubble,
    states_on_each,
    tensor_bytes,
    tensor_mlp,
    zero_memory,
)
from labkit.check.many_models import break_even, disagreement, mutual_bytes, picked, softened, suspects
from labkit.check.networks import gossip, graph, metropolis
from labkit.check.scale import devices_needed, layout, on_one_device, transformer_parameters
from labkit.check.scaling import all_reduce, amdahl, fewest_workers, ring_seconds, serial_share
from labkit.check.training import checkpoint_interval, local_bytes, lost_rounds, mean_gradient, staleness, traffic
from labkit.check.trust import clip, defence, reconstruct
from labkit.check.work import PUZZLE, frontier, lpt, schedule, speedup, split, ssp

if TYPE_CHECKING:
    from labkit.check.algorithms import algorithm as algorithm

__all__ = [
    "CLAIMS",
    "PUZZLE",
    "Passed",
    "adjoint",
    "algorithm",
    "all_reduce",
    "amdahl",
    "break_even",
    "cases",
    "checkpoint_interval",
    "choices",
    "clip",
    "defence",
    "devices_needed",
    "disagreement",
    "evidence",
    "fair_rates",
    "fedavg_end",
    "fednova_step",
    "fewest_workers",
    "frontier",
    "gossip",
    "graph",
    "guarded",
    "layout",
    "local_bytes",
    "lost_rounds",
    "lpt",
    "mean_gradient",
    "metropolis",
    "mutual_bytes",
    "on_one_device",
    "open_doors",
    "picked",
    "pipeline",
    "pipeline_bubble",
    "reconstruct",
    "ring_seconds",
    "schedule",
    "serial_share",
    "softened",
    "speedup",
    "split",
    "ssp",
    "staleness",
    "states_on_each",
    "suspects",
    "tensor_bytes",
    "tensor_mlp",
    "traffic",
    "transformer_parameters",
    "unbeaten",
    "zero_memory",
]


def __getattr__(name: str) -> Any:
    if name != "algorithm":
        raise AttributeError(f"labkit.check has no {name!r}; it has {', '.join(__all__)}")
    from labkit.check.algorithms import algorithm  # which needs torch, and exercises do not

    return algorithm


def __dir__() -> list[str]:
    return __all__
