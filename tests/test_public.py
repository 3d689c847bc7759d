"""The public face: every name is there, and each one says what it is."""

from __future__ import annotations

import inspect
import types
from functools import cached_property
from typing import Any

import pytest

import labkit

DESCRIBED = types.FunctionType | classmethod | staticmethod | property | cached_property


def _members(owner: Any) -> set[str]:
    """The public names that a module lists, or that labkit's own classes give to a class."""
    if isinstance(owner, types.ModuleType):
        return set(getattr(owner, "__all__", ()))
    if not inspect.isclass(owner):
        return set()
    ours = [base for base in inspect.getmro(owner) if base.__module__.startswith("labkit")]
    held = {name: member for base in ours for name, member in vars(base).items() if not name.startswith("_")}
    return {name for name, it in held.items() if isinstance(it, DESCRIBED)}


@pytest.mark.parametrize("name", sorted(labkit.__all__))
def test_every_public_name_has_a_docstring(name: str) -> None:
    value = getattr(labkit, name)
    assert inspect.getdoc(value)
    for member in sorted(_members(value)):
        found = getattr(value, member)
        if inspect.isclass(found) or inspect.isroutine(found) or isinstance(found, property | cached_property):
            assert inspect.getdoc(found), f"{name}.{member} has no docstring"


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"labkit has no 'splitt'; it has .*split"):
        labkit.splitt  # noqa: B018


def test_dir_shows_the_public_names() -> None:
    assert set(labkit.__all__) <= set(dir(labkit))
