"""Checks: what callers hand in, read once, and refused in one sentence where it does not fit."""

from __future__ import annotations

import math
import operator
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import LabkitError, ScheduleError, SettingError
from labkit.text import name_all, short

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
        raise error(f"{name} {short(values)} cannot be read as numbers; give one number for each.") from None


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


# -- Checks of the settings that algorithms share.


def at_least_one(value: int, name: str) -> None:
    """Raise SettingError unless `value` is a whole number of at least one."""
    _whole(value, name, 1)


def whole_from_zero(value: int, name: str) -> None:
    """Raise SettingError unless `value` is a whole number of at least zero."""
    _whole(value, name, 0)


def _whole(value: int, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise SettingError(f"{name}={value!r} is not a whole number of at least {least}: give {name}={least} or more.")


def number(value: float, name: str, least: float = 0.0, most: float = math.inf, *, above: bool = False) -> None:
    """Raise SettingError unless `value` is a finite number from `least` to `most`; `above` leaves `least` out."""
    real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not real or not least <= value <= most or (above and value == least):
        low = f"above {least:g}" if above else f"from {least:g}"
        high = " on" if most == math.inf and not above else f" up to {most:g}" if most < math.inf else ""
        raise SettingError(f"{name}={value!r} is out of range: give a number {low}{high}.")


def below_one(value: float, name: str) -> None:
    """Raise SettingError unless `value` is a number from 0 to 1, without 1, as the β of a running average is."""
    number(value, name, 0.0, 1.0)
    if value == 1:
        raise SettingError(f"{name}=1 never lets anything new in: give a number from 0 on, below 1.")
