"""Parametrized modules travel: torch gives each a class of its own, which pickle cannot find and torch forbids."""

from __future__ import annotations

from typing import Any


def reduced(module: Any) -> tuple[Any, ...] | None:
    """How pickle takes a module that weight_norm, spectral_norm or orthogonal has parametrized; None for all else.

    What it was before, and its attributes; the class of its own is made anew where it arrives.
    """
    if "parametrizations" not in getattr(module, "__dict__", {}).get("_modules", ()):
        return None
    from torch.nn.utils.parametrize import type_before_parametrizations

    state = {name: value for name, value in vars(module).items() if name != "_compiled_call_impl"}
    return _bare, (type_before_parametrizations(module),), state, None, None, _fill


def _bare(cls: Any) -> Any:
    return cls.__new__(cls)


def _fill(module: Any, state: dict[str, Any]) -> None:
    from torch.nn.utils import parametrize

    vars(module).update(state)
    parametrize._inject_new_class(module)
    for name in module.parametrizations:
        parametrize._inject_property(module, name)
