"""Checks: what callers hand in, read once, and refused in one sentence where it does not fit."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import LabkitError, SettingError
from labkit.text import name_all, short

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
SEEDS = 2**63 - 1  # the largest seed: torch takes no more


def whole(
    value: Any, name: str, error: type[LabkitError] = SettingError, least: int = 1, most: int | None = None
) -> int:
    """Return `value` as an int from `least` to `most`; text, fractions, truth values and other numbers raise `error`.

    >>> whole(np.int64(3), "every")
    3
    >>> whole(True, "every")
    Traceback (most recent call last):
    labkit.errors.SettingError: every is True, which is no whole number; give an int of at least 1.
    """
    bounds = f"at least {least}" if most is None else f"{least} to {most}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise error(f"{name} is {value!r}, which is no whole number; give an int of {bounds}.")
    if number < least or (most is not None and number > most):
        raise error(f"{name} is {number}; give {bounds}.")
    return number


def number(
    value: Any,
    name: str,
    error: type[LabkitError] = SettingError,
    least: float = 0.0,
    most: float | None = None,
    *,
    above: bool = False,
    below: bool = False,
    unit: str = "a number",
) -> float:
    """Return `value` as a float from `least` to `most`; text, truth values, NaN and other numbers raise `error`.

    `above` leaves out `least`, `below` leaves out `most`. Infinity is in range where `most` is math.inf.

    >>> number(0, "participation", most=1, above=True)
    Traceback (most recent call last):
    labkit.errors.SettingError: participation is 0; give a number above 0 up to 1.
    """
    real = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    fits = least <= real if most is None else least <= real <= most
    if not fits or (most is None and real == math.inf) or (above and real == least) or (below and real == most):
        low = f"above {least:g}" if above else f"from {least:g}"
        if most is None or most == math.inf:
            high = "" if above else " on"
        elif below:
            high = f", below {most:g}" if above else f" on, below {most:g}"
        else:
            high = f" up to {most:g}" if above else f" to {most:g}"
        raise error(f"{name} is {value!r}; give {unit} {low}{high}.")
    return real


def one_of(value: Any, name: str, options: Iterable[str], error: type[LabkitError] = SettingError) -> str:
    """Return `value` if it is one of the options, else raise `error`.

    >>> one_of("pair", "kind", ("symmetric", "pair"))
    'pair'
    """
    if value not in (known := tuple(options)):
        raise error(f"{name}={value!r} is unknown; choose one of {', '.join(known)}.")
    return str(value)


def numbers(values: Any, name: str, error: type[LabkitError]) -> Floats:
    """Return `values` as a float64 array; anything that is not numeric raises `error`."""
    try:
        return np.array(values if hasattr(values, "__array__") else list(values), dtype=np.float64)
    except (TypeError, ValueError):
        raise error(f"{name} {short(values, 60)} cannot be read as numbers; give one number for each.") from None


def speeds_of(speeds: Any, count: int, who: str, error: type[LabkitError]) -> Floats:
    """Return the speeds as a float64 array [count], all 1 if None; `error` unless each is finite and above zero."""
    pace: Floats = np.ones(count) if speeds is None else numbers(speeds, "speeds", error)
    if pace.shape != (count,):
        raise error(f"{pace.size} speeds do not fit {count} {who}s; give one speed for each {who}.")
    with np.errstate(over="ignore"):
        total = pace.sum()
    if not (np.isfinite(total) and (pace > 0).all()):
        raise error(f"speeds {name_all(pace)} must be finite and above zero; leave out a {who} that stands still.")
    return pace


def generator(seed: Any, error: type[LabkitError] = SettingError) -> np.random.Generator:
    """Return numpy's generator for a whole, non-negative seed."""
    return np.random.default_rng(whole(seed, "seed", error, least=0, most=SEEDS))
