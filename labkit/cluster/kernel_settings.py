"""Kernel settings: what a notebook has set since its workers started, and what they compute is to see.

These are torch's default dtype and, for workers of this machine, the current folder, `sys.path`, and the environment
variables that differ from those at `connect`, but for secrets: names with KEY, TOKEN, SECRET, PASS or CREDENTIAL stay.
They travel in front of each function, so that what was submitted earlier keeps those of its own moment.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from labkit.cluster.user_modules import forget_edited

_SECRET = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_THE_WORKERS_OWN = re.compile("CUDA_VISIBLE_DEVICES|MALLOC_.*|(OMP|MKL|OPENBLAS)_NUM_THREADS|LABKIT_ITEMS")


class KernelSettings(NamedTuple):
    """The settings of one moment; None leaves a worker's own."""

    dtype: str | None = None  # as in torch.float64
    folder: str | None = None
    path: tuple[str, ...] = ()
    environment: Mapping[str, str | None] = {}  # None: the variable is to be absent

    def apply(self) -> None:
        """Make them those of this process, a worker."""
        if self.dtype is not None:
            import torch

            if torch.get_default_dtype() is not (dtype := getattr(torch, self.dtype)):
                torch.set_default_dtype(dtype)
        if self.folder is not None and _folder() != self.folder:
            with suppress(OSError):  # deleted meanwhile: whoever looks for a file there is told so
                os.chdir(self.folder)
        for name, value in self.environment.items():
            if value is None:
                os.environ.pop(name, None)
            elif os.environ.get(name) != value:
                os.environ[name] = value
        if self.path:
            forget_edited(moved=_follow_path(self.path))


_followed: tuple[str, ...] = ()  # what stands in sys.path because the kernel had it


def _follow_path(path: tuple[str, ...]) -> bool:
    """Search modules where the kernel does; whether that is new."""
    global _followed
    if path == _followed and tuple(sys.path[-len(path) :]) == path:
        return False
    known = {*path, *_followed}
    sys.path[:] = [*(entry for entry in sys.path if entry not in known), *path]  # a worker's own: files sent to it
    _followed = path
    return True


def _folder() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # it was deleted
        return None


class SettingsWatch:
    """Sees in the kernel what has changed since it was made; `local` tells whether its workers share this machine."""

    def __init__(self, local: bool) -> None:
        self._local = local
        self._before = dict(os.environ)
        self._changed: set[str] = set()  # also what was changed back, which workers have to hear of

    def now(self) -> KernelSettings:
        """The settings of this moment."""
        torch: Any = sys.modules.get("torch")
        dtype = str(torch.get_default_dtype()).removeprefix("torch.") if hasattr(torch, "get_default_dtype") else None
        if not self._local:
            return KernelSettings(dtype)
        here = dict(os.environ)
        differ = {name for name in here.keys() | self._before.keys() if here.get(name) != self._before.get(name)}
        self._changed |= {it for it in differ if not _SECRET.search(it) and not _THE_WORKERS_OWN.fullmatch(it)}
        return KernelSettings(dtype, _folder(), tuple(sys.path), {name: here.get(name) for name in self._changed})
