"""Digest: whether code, settings and objects are the same as before, in this process or in another one.

A function is its bytecode, with its constants, the values that it closes over, its defaults, and whatever of one's own
it uses; an object is its class and what it holds; a class its methods. What comes with Python or a package is its name.
Comments count nothing, nor does where something lies in memory.
"""

from __future__ import annotations

import hashlib
import re
import sys
from functools import cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_WHOLE = 16 << 20  # bytes of a tensor that are looked at; of a larger one as many, evenly spread
_MOST = 4000  # things that are looked at, before somebody's object is said to be too large
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial, staticmethod, classmethod, property)
_HOLDERS = (Tensor, np.ndarray, nn.Module, SimpleNamespace, list, tuple, dict, set, frozenset)
_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"training", "_forward_hooks", "_forward_pre_hooks"}


class Unseen(Exception):
    """What an object is cannot be told from what it is made of."""


def digest(what: Any, numbers: bool = True) -> str:
    """A SHA-256 that is the same for the same thing, in another process too; parameters count by their shapes.

    Without `numbers` so do all tensors; then Unseen is raised for an object that shows nothing of what it holds, or too
    much.

    >>> digest(lambda x: x + 1) == digest(lambda x: x + 1), digest(nn.ReLU()) == digest(nn.Tanh())
    (True, False)
    """
    return hashlib.sha256(_Reader(numbers).read(what)).hexdigest()


class _Reader:
    def __init__(self, numbers: bool) -> None:
        self._numbers = numbers
        self._known: dict[int, tuple[Any, bytes]] = {}  # by its id what was read, kept for its id to stay its own

    def read(self, what: Any) -> bytes:
        if isinstance(what, _PLAIN):
            return f"{type(what).__name__} {what!r}".encode()
        if id(what) not in self._known:
            if len(self._known) > _MOST and not self._numbers:
                raise Unseen
            self._known[id(what)] = what, b"again"  # for what is a part of itself
            self._known[id(what)] = what, hashlib.sha256(self._made_of(what)).digest()
        return self._known[id(what)][1]

    def _made_of(self, what: Any) -> bytes:
        if isinstance(what, nn.Parameter):
            return f"parameter {what.shape} {what.dtype} {what.requires_grad}".encode()
        if isinstance(what, Tensor):
            return self._tensor(what)
        if isinstance(what, np.ndarray):
            return self._array(what)
        if isinstance(what, dict):
            return b"dict" + self._all(sorted(((str(key), value) for key, value in what.items()), key=lambda it: it[0]))
        if isinstance(what, set | frozenset):
            return b"set" + b"".join(sorted(map(self.read, what)))
        if isinstance(what, list | tuple):
            return type(what).__name__.encode() + self._all(what)
        if isinstance(what, CodeType):
            return what.co_code + self._all((what.co_names, what.co_consts))
        if isinstance(what, _FUNCTIONS):
            return self._function(what)
        if isinstance(what, type):
            return self._class(what)
        if isinstance(what, ModuleType):
            return f"module {what.__name__}".encode()
        if isinstance(what, nn.Module):
            layers = [(name, type(it), _held(it)) for name, it in what.named_modules()]
            return self._all(layers) + self._all([*what.parameters(), *what.named_buffers()])
        held = _held(what)
        if not held and not self._numbers and not hasattr(what, "__dict__"):
            raise Unseen
        return self._all((type(what), held))

    def _all(self, each: Any) -> bytes:
        return b"".join(hashlib.sha256(self.read(it)).digest() for it in each)

    def _array(self, what: Any) -> bytes:
        form = f"array {what.shape} {what.dtype}".encode()
        if not self._numbers:
            return form
        if what.dtype.hasobject:
            return form + self.read(what.tolist())
        flat = what.reshape(-1)
        raw = flat[:: -(-flat.nbytes // _WHOLE) or 1].tobytes()
        return form + hashlib.sha256(raw).digest()

    def _tensor(self, what: Tensor) -> bytes:
        form = f"tensor {tuple(what.shape)} {what.dtype} {what.requires_grad}".encode()
        if not self._numbers:
            return form
        flat = what.detach().cpu().reshape(-1)
        most = _WHOLE // max(1, flat.element_size())
        if flat.numel() > most:
            flat = flat[:: -(-flat.numel() // most)]
        raw = flat.contiguous().view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        return form + hashlib.sha256(raw).digest()

    def _function(self, what: Any) -> bytes:
        if isinstance(what, partial):
            return self._all((what.func, what.args, what.keywords))
        if isinstance(what, property):
            return self._all((what.fget, what.fset))
        if isinstance(what, MethodType):
            return self._all((what.__func__, what.__self__))
        if isinstance(what, BuiltinFunctionType):
            owner = what.__self__
            return f"{what.__module__}.{what.__qualname__}".encode() + self.read(owner)
        if not isinstance(what, FunctionType):
            return self.read(what.__func__)  # a static method, or one of the class
        if _of_a_library(what.__module__):
            return f"{what.__module__}.{what.__qualname__}".encode()
        cells = [cell.cell_contents for cell in what.__closure__ or () if cell != type(cell)()]
        used = {name: what.__globals__[name] for name in _names(what.__code__) if name in what.__globals__}
        own = {name: it for name, it in used.items() if not isinstance(it, ModuleType) and self._counts(it)}
        return self._all((what.__code__, what.__defaults__, what.__kwdefaults__, cells, own))

    def _counts(self, it: Any) -> bool:
        """Whether a global decides what a function does: a library's own objects may be anything, such as a cluster."""
        plain = isinstance(it, (*_PLAIN, *_FUNCTIONS, *_HOLDERS, type))
        return plain or not self._numbers or not _of_a_library(type(it).__module__)

    def _class(self, what: type) -> bytes:
        if _of_a_library(what.__module__):
            return f"{what.__module__}.{what.__qualname__}".encode()
        own = {
            name: it
            for name, it in vars(what).items()
            if isinstance(it, _FUNCTIONS) or (isinstance(it, (*_PLAIN, *_HOLDERS)) and not name.startswith("__"))
        }
        return what.__qualname__.encode() + self._all((what.__bases__, own))


def described(what: Any) -> str:
    """Its representation, without where it lies in this process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(what))


def _names(code: CodeType) -> set[str]:
    """The names that the code looks up, that of the functions in it included."""
    inside = [_names(it) for it in code.co_consts if isinstance(it, CodeType)]
    return set(code.co_names).union(*inside)


def _held(what: Any) -> dict[str, Any]:
    """What an object holds in its attributes."""
    slots = [name for base in type(what).__mro__ for name in getattr(base, "__slots__", ())]
    held = {name: getattr(what, name) for name in slots if hasattr(what, name)} | getattr(what, "__dict__", {})
    return {name: it for name, it in held.items() if not isinstance(what, nn.Module) or name not in _OF_EVERY_MODULE}


@cache
def _of_a_library(module: str | None) -> bool:
    """Whether code comes with Python, labkit or another package that is installed, whose names say what it does."""
    root = (module or "").partition(".")[0]
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return root == "labkit" or root in sys.stdlib_module_names - {"__main__"} or "site-packages" in file
