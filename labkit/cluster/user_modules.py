"""Modules beside the notebook: what a call reaches of them travels by value, as it is in the kernel at that moment.

A worker may not find such a module, and once it has imported one it would go on with the text of that time, whatever
was edited and loaded again in the notebook.
"""

from __future__ import annotations

import copyreg
import io
import os
import site
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from labkit.cluster.parametrized import reduced


def by_value(thing: Any) -> bytes:
    """`thing` pickled with all that it reaches of the user's own modules, as these are in this process now.

    What cannot be pickled, such as a lock that a module holds, stays where it is: first such modules, then all of them
    travel as names, by which workers of this machine find them.
    """
    _torchs_by_name()
    try:
        return _pickled(thing, _Pickler)
    except Exception:  # noqa: BLE001  pickling runs code of whatever is reached; what fails the last time is raised
        try:
            return _pickled(thing, _ModulesByName)
        except Exception:  # noqa: BLE001
            return bytes(cloudpickle.dumps(thing))


def _pickled(thing: Any, pickler: type[Any]) -> bytes:
    stream = io.BytesIO()
    with _by_value():
        pickler(stream).dump(thing)
    return stream.getvalue()


def _torchs_by_name() -> None:
    """Let pickle name torch's modules that are objects of a class of their own, which it cannot take apart.

    cloudpickle finds them in any function that knows `torch` and reads an attribute called `classes` of something.
    """
    for name in ("torch.classes", "torch.ops"):
        if name in sys.modules:
            copyreg.pickle(type(sys.modules[name]), _named)


def _named(module: ModuleType) -> tuple[Any, ...]:
    return import_module, (module.__name__,)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is not annotated
    """Takes functions and classes along, and torch's parametrized modules."""

    def reducer_override(self, obj: Any) -> Any:
        return reduced(obj) or super().reducer_override(obj)


class _ModulesByName(_Pickler):
    """Takes functions and classes along, and the names of their modules."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ModuleType) and is_users(obj):
            return _named(obj)
        return super().reducer_override(obj)


_registering = threading.RLock()  # cloudpickle's registry is one for all threads


@contextmanager
def _by_value() -> Iterator[None]:
    with _registering:
        before = cloudpickle.list_registry_pickle_by_value()
        added = [sys.modules[name] for name in _users(tuple(sys.modules)) if name in sys.modules and name not in before]
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in added:
                cloudpickle.unregister_pickle_by_value(module)


@lru_cache(maxsize=1)  # to look at thousands of modules takes a millisecond
def _users(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if is_users(sys.modules.get(name)) and sys.modules[name].__name__ == name]


def is_users(module: Any) -> bool:
    """Whether a module is a file of the user's own, neither Python's, nor installed, nor labkit's."""
    known = getattr(module, "__dict__", {})  # a lazy module would import what it is asked for
    file, name = known.get("__file__"), known.get("__name__", "__main__")
    return bool(file) and name != "__main__" and sys.modules.get(name) is module and _lies_with_user(str(file))


@cache
def _installed() -> tuple[str, ...]:
    """How the paths of files begin that come with Python, with packages and with labkit."""
    known = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = [*known, *site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parents[1])]
    return tuple(f"{Path(folder)}{os.sep}" for folder in folders)


def _lies_with_user(file: str) -> bool:
    return file.endswith(".py") and not file.startswith(_installed())


# -- on a worker, those that are imported there by name

_stamps: dict[str, int] = {}  # module -> its file's time when it was imported here
_seen = 0


def note_imported() -> None:
    """Remember of which time the user's modules are that this process has imported."""
    global _seen
    if _seen != len(sys.modules):
        _seen = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if name not in _stamps and is_users(module):
                _stamps[name] = _time_of(module)


def forget_edited(moved: bool) -> None:
    """Let the user's modules be imported anew, all of them since they import each other, once one was edited.

    Or `moved`: other ones are found under their names.
    """
    global _seen
    if moved or any(name in sys.modules and _time_of(sys.modules[name]) != stamp for name, stamp in _stamps.items()):
        for name in _stamps:
            sys.modules.pop(name, None)
        _stamps.clear()
        _seen = 0
        invalidate_caches()


def _time_of(module: ModuleType) -> int:
    try:
        return Path(str(module.__file__)).stat().st_mtime_ns
    except OSError:
        return 0
