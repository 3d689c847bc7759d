"""Memory: what the limit of a machine, a container or a student's server leaves to each worker of this kernel.

The limit holds for all that runs under it together: the notebook server, this kernel, the template that workers are
forked from, and the workers, which share what the others leave.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil

from labkit.cluster.machine import usable_memory
from labkit.errors import SettingError
from labkit.text import amount, some

if TYPE_CHECKING:
    from distributed import Nanny, Scheduler, Worker

_MIB = 1 << 20
# As measured by tests/benchmarks/bench_student.py; a kernel and a server that hold more than that count as they are.
SERVER, KERNEL, TEMPLATE = 130 * _MIB, 310 * _MIB, 120 * _MIB
STUDENT = 990 * _MIB
"""Bytes of a student with two workers after lesson 00: 982 MiB were measured, of each of twelve on a hub."""
LEAST = 400 * _MIB
"""Bytes that a worker needs that trains: a small training takes 300 MiB, and at 80 % of its limit a worker pauses."""

MORE_ROOM = "free it by lab.restart_workers(), or connect with fewer workers or a larger memory=…."
"""What helps where workers have used up their memory."""

_size = partial(amount, binary=True)


def memory_is_limited() -> bool:
    """Whether somebody has set a limit below the memory that the machine has."""
    return usable_memory() < int(psutil.virtual_memory().total)


def taken() -> int:
    """Bytes that are not the workers': of the notebook server, where there is one, this kernel and the template."""
    server = os.environ.get("JPY_PARENT_PID", "")  # which Jupyter tells its kernels
    of_server = max(SERVER, _held(int(server))) if server.isdigit() else 0
    return of_server + max(KERNEL, _held(os.getpid())) + TEMPLATE


def _held(pid: int) -> int:
    """A process's bytes, pages that several share in proportion; 0 where it is gone or may not be asked."""
    try:
        held = psutil.Process(pid).memory_full_info()
    except (psutil.Error, OSError):
        return 0
    return int(getattr(held, "pss", held.uss))  # pss: Linux alone


def fitting(limit: int, others: int) -> int:
    """How many workers a limit bears, where others take so much of it.

    >>> fitting(2048 * _MIB, 700 * _MIB), fitting(512 * _MIB, 700 * _MIB)
    (3, 0)
    """
    return max(0, (limit - others) // LEAST)


def share_of(workers: int) -> int:
    """Bytes for each of so many workers, as things are now.

    Raises SettingError where that is less than a worker needs, with what would fit.
    """
    limit, others = usable_memory(), taken()
    share = (limit - others) // workers
    if share >= LEAST:
        return share
    needed = f"a memory limit of {_size(others + workers * LEAST)}"
    fits = fitting(limit, others)
    if workers == 1:
        remedy = f"it needs {needed}, or other programs closed."
    elif fits:
        remedy = f"ask for workers={fits}, or for {needed}."
    else:
        remedy = f"they need {needed}, and not even one fits here."
    raise SettingError(
        f"{some(workers, 'worker')} would have {_size(max(0, share))} each, and one needs {_size(LEAST)}: of the "
        f"{_size(limit)} that may be used here notebook, kernel and the template of workers take {_size(others)}; "
        f"{remedy}"
    )


def as_many_as_fit(workers: int) -> int:
    """`workers`, or fewer where memory bears fewer; at least one."""
    return max(1, min(workers, fitting(usable_memory(), taken())))


async def hold_to(nbytes: int, nannies: Iterable[Nanny], scheduler: Scheduler) -> None:
    """Give workers that run already another limit: in their nannies, which end them, and in the scheduler's tables."""
    for nanny in nannies:
        nanny.memory_manager.memory_limit = nbytes
        if nanny.worker_address in scheduler.workers:
            scheduler.workers[nanny.worker_address].memory_limit = nbytes


def hold_this_worker_to(nbytes: int, dask_worker: Worker) -> None:
    """Give the worker that this runs on another limit, at parts of which it moves results to disk and pauses."""
    manager: Any = dask_worker.memory_manager
    before, manager.memory_limit = manager.memory_limit, nbytes
    if before and hasattr(manager.data, "fast"):
        manager.data.fast.n *= nbytes / before
