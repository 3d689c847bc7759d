"""What every worker needs before it trains: a patient allocator, torch already imported, its own number of threads.

Dask's nanny starts workers with MALLOC_TRIM_THRESHOLD_=65536, so that glibc gives memory back to the system after
every training step and takes page faults to get it again; `mallopt` undoes that on a running process, remote ones too.
"""

from __future__ import annotations

import ctypes
import platform
import random
import signal
import sys
import threading
from importlib import import_module
from random import Random
from typing import TYPE_CHECKING, Any

from distributed import Status, WorkerPlugin

from labkit.cluster import deadlines
from labkit.cluster.certificates import turn_away_the_silent

if TYPE_CHECKING:
    from distributed import Worker


class Preparation(WorkerPlugin):
    """Readies each worker, also the ones that join later or come back after a death."""

    name = "labkit-preparation"
    idempotent = True  # several labs may share one cluster

    def __init__(self, *, interruptible: bool = True) -> None:
        self.interruptible = interruptible

    def setup(self, worker: Worker) -> None:
        """Called by Dask on the worker's event loop, so it must not take long."""
        if keep_memory():
            give_back_when_full(worker)
        draw_differently()
        turn_away_the_silent(worker)
        if not self.interruptible and threading.current_thread() is threading.main_thread():
            # "Interrupt kernel" and Ctrl-C signal the whole process group; they are meant for the cell alone.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Importing torch takes more than a second: on the event loop it would stop the worker's heartbeats.
        global _preloading
        _preloading = threading.Thread(
            target=_preload, args=(worker.state.nthreads,), name="labkit-preload", daemon=True
        )
        _preloading.start()


_preloading: threading.Thread | None = None


def wait_for_torch() -> None:
    """Return once torch is imported here: a task that imports a part of it meanwhile can abort the worker."""
    if _preloading is not None:
        _preloading.join(deadlines.PRELOAD)


def _preload(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


# -- the allocator

# <malloc.h>: option -> bytes
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MALLOPT = {_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: 512 << 20, _M_TOP_PAD: 64 << 20}


def keep_memory() -> bool:
    """Let glibc keep freed memory, up to half a gigabyte, for the next step; False where there is no glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) == 1 for option, value in _MALLOPT.items())


def give_back_when_full(worker: Worker) -> None:
    """Let a worker that Dask has paused give back what it has freed, which would count as used for ever."""
    trim = ctypes.CDLL(None).malloc_trim

    def look() -> None:
        if worker.status is Status.paused:
            trim(0)
        if worker.status not in (Status.closing, Status.closed, Status.failed):
            worker.loop.call_later(deadlines.PAUSED, look)

    look()


# -- random numbers: Dask draws some to choose what it measures and whom it asks

_DRAW = (
    "dask.sizeof",
    "distributed.comm.core",
    "distributed.scheduler",
    "distributed.utils_comm",
    "distributed.worker",
)


def draw_differently() -> None:
    """Give this process random numbers of its own: a forked one has those of its template, as all of them do."""
    random.seed()
    for name in ("numpy.random", "torch"):
        if name in sys.modules:  # else it begins with numbers of its own, once it is imported
            sys.modules[name].seed()


def leave_random_alone() -> None:
    """Let Dask's event loop in this process, notebook or worker, draw numbers of its own.

    It would take them from those that the user's code draws with `random`, at moments that differ from run to run.
    """
    own = Random()
    for name in _DRAW:
        module: Any = import_module(name)
        module.random = own  # in place of the module of that name, of whose functions it calls some
