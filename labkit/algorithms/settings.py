"""Checks of the settings that algorithms share."""

from __future__ import annotations

import math
from numbers import Integral, Real

from labkit.errors import SettingError


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
