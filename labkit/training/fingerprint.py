"""Fingerprints: whether code and settings are the same as before, although a notebook cell made them anew.

A function is its code, with the values of what it closes over and of the globals that it names; a class is its
methods; a module is its layers, shapes and settings, without its numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size)
_MOST = 4000  # things that are looked at, before somebody's object is said to be too large


class Unknown(Exception):
    """What it is cannot be told from what it is made of."""


def fingerprint(*things: Any) -> Hashable:
    """What is equal for things that do the same, as far as that can be read off them; None where it cannot.

    >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 1), fingerprint(nn.Linear(2, 3)) == fingerprint(3)
    (True, False)
    """
    try:
        return _Reader().read(things)
    except (Unknown, RecursionError):
        return None


class _Reader:
    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, Any]] = {}  # what was read already, by its number

    def read(self, it: Any) -> Hashable:
        if isinstance(it, _PLAIN):
            return type(it).__name__, it
        if isinstance(it, CodeType):
            return it
        if isinstance(it, BuiltinFunctionType):
            return it.__qualname__, it.__module__, self.read(it.__self__)
        if id(it) in self._seen:
            return "again", self._seen[id(it)][0]
        if len(self._seen) > _MOST:
            raise Unknown
        self._seen[id(it)] = len(self._seen), it  # kept, for its id to stay its own
        return self._read(it)

    def _read(self, it: Any) -> Hashable:
        if isinstance(it, Tensor):
            return "tensor", it.shape, it.dtype, it.requires_grad, str(it.device)
        if isinstance(it, tuple | list):
            return type(it).__name__, *map(self.read, it)
        if isinstance(it, dict):
            return type(it).__name__, *((self.read(key), self.read(value)) for key, value in it.items())
        if isinstance(it, set | frozenset):
            return type(it).__name__, frozenset(map(self.read, it))
        if isinstance(it, partial):
            return "partial", self.read(it.func), self.read(it.args), self.read(it.keywords)
        if isinstance(it, MethodType):
            return "method", self.read(it.__func__), self.read(it.__self__)
        if isinstance(it, FunctionType):
            return self._function(it)
        if isinstance(it, type):
            return self._class(it)
        if isinstance(it, ModuleType):
            return "module", it.__name__
        if hasattr(it, "__slots__") or not hasattr(it, "__dict__"):
            raise Unknown
        return self.read(type(it)), *((name, self.read(value)) for name, value in vars(it).items())

    def _function(self, it: FunctionType) -> Hashable:
        if _installed(it):
            return it.__module__, it.__qualname__
        cells = [cell.cell_contents for cell in it.__closure__ or () if _filled(cell)]
        named = [it.__globals__[name] for name in _names(it.__code__) if name in it.__globals__]
        return it.__code__, self.read((it.__defaults__, it.__kwdefaults__, cells, named))

    def _class(self, it: type) -> Hashable:
        if _installed(it):
            return it.__module__, it.__qualname__
        own = {
            name: getattr(value, "__func__", getattr(value, "fget", value))
            for name, value in vars(it).items()
            if not name.startswith("__") or name in ("__init__", "__call__")
        }
        return it.__qualname__, self.read(it.__bases__), self.read(own)


def _names(code: CodeType) -> set[str]:
    """The globals that a function and those inside of it may name."""
    inner = (_names(const) for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*inner)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  asked for
    except ValueError:
        return False
    return True


def _installed(it: Any) -> bool:
    """Whether a function or class is a package's, which nobody edits while a kernel goes on."""
    module = sys.modules.get(getattr(it, "__module__", None) or "")
    if module is None or module.__name__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    return file is None or "site-packages" in file or module.__name__.split(".")[0] in ("torch", "labkit", "numpy")


def is_torchs(module: nn.Module) -> bool:
    """Whether a module is one of torch's own layers, which keep nothing but parameters and buffers."""
    return type(module).__module__.startswith("torch.")
