"""Checks of the settings that algorithms share."""

from __future__ import annotations

import math

from labkit.errors import SettingError


def at_least_one(value: int, name: str) -> None:
    """Raise SettingError unless `value` is a whole number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(f"{name}={value!r} is not a whole number of at least 1: give {name}=1 or more.")


def whole_from_zero(value: int, name: str) -> None:
    """Raise SettingError unless `value` is a whole number of at least zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SettingError(f"{name}={value!r} is not a whole number of at least 0: give {name}=0 or more.")


def number(value: float, name: str, least: float = 0.0, most: float = math.inf, *, above: bool = False) -> None:
    """Raise SettingError unless `value` is a finite number from `least` to `most`; `above` leaves `least` out."""
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not real or not least <= value <= most or (above and value == least):
        low = f"above {least:g}" if above else f"from {least:g}"
        high = " on" if most == math.inf and not above else f" up to {most:g}" if most < math.inf else ""
        raise SettingError(f"{name}={value!r} is out of range: give a number {low}{high}.")


def below_one(value: float, name: str) -> None:
    """Raise SettingError unless `value` is a number from 0 to 1, without 1, as the β of a running average is."""
    number(value, name, 0.0, 1.0)
    if value == 1:
        raise SettingError(f"{name}=1 never lets anything new in: give a number from 0 on, below 1.")
