"""What callers hand to `tasks/`, read once: whole numbers, seconds, speeds and seeds, each refused in one sentence."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import LabkitError, ScheduleError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def whole(value: Any, name: str, error: type[LabkitError], least: int = 1) -> int:
    """Return `value` as an int of at least `least`; text, fractions, truth values and smaller numbers raise `error`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise error(f"{name} is {value!r}, which is no whole number; give an int of at least {least}.")
    if number < least:
        raise error(f"{name} is {number}; give at least {least}.")
    return number


def numbers(values: Any, name: str, error: type[LabkitError]) -> Floats:
    """Return `values` as a float64 array; anything that is not numeric raises `error`."""
    try:
        return np.array(values if hasattr(values, "__array__") else list(values), dtype=np.float64)
    except (TypeError, ValueError):
        raise error(f"{name} {_short(values)} cannot be read as numbers; give one number for each.") from None


def finite_seconds(value: Any, name: str) -> float:
    """Return one duration in seconds; ScheduleError unless it is a finite number, not negative."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ScheduleError(f"{name} is {value!r}; give seconds as a finite number, not negative.")
    return seconds


def worker_speeds(speeds: Any, workers: int) -> Floats:
    """Return the speeds as a float64 array [workers], all 1 if None; ScheduleError unless finite and above zero."""
    pace: Floats = np.ones(workers) if speeds is None else numbers(speeds, "speeds", ScheduleError)
    if pace.shape != (workers,):
        raise ScheduleError(f"{pace.size} speeds do not fit {workers} workers; give one speed for each worker.")
    with np.errstate(over="ignore"):
        total = pace.sum()
    if not (np.isfinite(total) and (pace > 0).all()):
        raise ScheduleError(
            f"speeds {name_all(pace)} must be finite and above zero; leave out a worker that stands still."
        )
    return pace


def generator(seed: Any, error: type[LabkitError]) -> np.random.Generator:
    """Return numpy's generator for a whole, non-negative seed."""
    return np.random.default_rng(whole(seed, "seed", error, least=0))


def some(number: int, noun: str) -> str:
    """How many there are of something.

    >>> some(1, "worker"), some(10_000, "worker")
    ('1 worker', '10,000 workers')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def name_all(things: Sequence[Any] | Floats | Integers, most: int = 12) -> str:
    """Name every thing, or the first `most` of them and how many more there are.

    >>> name_all(range(3)), name_all(range(1000), most=2)
    ('0, 1, 2', '0, 1 and 998 more')
    """
    named = ", ".join(_short(thing) for thing in things[:most])
    return named if len(things) <= most else f"{named} and {len(things) - most:,} more"


def _short(thing: Any) -> str:
    text = repr(thing.item() if isinstance(thing, np.generic) else thing)
    return text if len(text) <= 60 else text[:57] + "..."
