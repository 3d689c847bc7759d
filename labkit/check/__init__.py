"""Check: exercises that check themselves, `lk.check.<exercise>(your_function)`.

Each returns `Passed`, or raises CheckFailed with one sentence: the input, what came back, what was expected, a hint.
The cases are fixed, so the same answer gets the same verdict everywhere.

>>> from labkit import check
>>> check.speedup(lambda serial, parallel, workers: (serial / parallel, serial / parallel / workers))
✓ speedup: 5 cases right
"""

from labkit.check.answers import Passed
from labkit.check.training import checkpoint_interval, local_bytes, lost_rounds, mean_gradient, staleness, traffic
from labkit.check.work import PUZZLE, frontier, lpt, schedule, speedup, split, ssp

__all__ = [
    "PUZZLE",
    "Passed",
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


def __dir__() -> list[str]:
    return __all__
