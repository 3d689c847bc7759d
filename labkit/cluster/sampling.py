"""Sampling: Dask draws at random, what to measure and whom to ask, and would take the numbers that the user draws."""

from __future__ import annotations

from importlib import import_module
from random import Random
from typing import Any

_DRAW = (
    "dask.sizeof",
    "distributed.comm.core",
    "distributed.scheduler",
    "distributed.utils_comm",
    "distributed.worker",
)


def leave_random_alone() -> None:
    """Let Dask's event loop in this process, notebook or worker, draw numbers of its own.

    It would take them from those that the user's code draws with `random`, at moments that differ from run to run.
    """
    own = Random()
    for name in _DRAW:
        module: Any = import_module(name)
        module.random = own  # in place of the module of that name, of whose functions it calls some
