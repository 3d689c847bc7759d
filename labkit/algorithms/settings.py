"""Checks of the settings that algorithms share."""

from __future__ import annotations

from labkit.errors import SettingError


def at_least_one(value: int, name: str) -> None:
    """Raise SettingError unless `value` is a whole number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(f"{name}={value!r} is not a whole number of at least 1: give {name}=1 or more.")
