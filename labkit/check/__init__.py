"""Check: exercises that check themselves, `lk.check.<exercise>(your_function)`.

Each returns `Passed`, or raises CheckFailed with one sentence: the input, what came back, what was expected, a hint.
The cases are fixed, so the same answer gets the same verdict everywhere.

>>> from labkit import check
>>> check.speedup(lambda serial, parallel, workers: (serial / parallel, serial / parallel / workers))
✓ speedup: 5 cases right

`lk.check.algorithm(mine)` does the same with an algorithm of one's own.
"""

from typing import TYPE_CHECKING, Any

from labkit.check.answers import Passed
from labkit.check.training import checkpoint_interval, local_bytes, lost_rounds, mean_gradient, staleness, traffic
from labkit.check.work import PUZZLE, frontier, lpt, schedule, speedup, split, ssp

if TYPE_CHECKING:
    from labkit.check.algorithms import algorithm as algorithm

__all__ = [
    "PUZZLE",
    "Passed",
    "algorithm",
    "checkpoint_interval",
    "frontier",
    "local_bytes",
    "lost_rounds",
    "lpt",
    "mean_gradient",
    "schedule",
    "speedup",
    "split",
    "ssp",
    "staleness",
    "traffic",
]


def __getattr__(name: str) -> Any:
    if name != "algorithm":
        raise AttributeError(f"labkit.check has no {name!r}; it has {', '.join(__all__)}")
    from labkit.check.algorithms import algorithm  # which needs torch, and exercises do not

    return algorithm


def __dir__() -> list[str]:
    return __all__
