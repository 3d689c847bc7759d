"""What every worker needs before it trains: a patient allocator, torch already imported, its own number of threads.

Dask's nanny starts workers with MALLOC_TRIM_THRESHOLD_=65536, so that glibc gives memory back to the system after
every training step and takes page faults to get it again; `mallopt` undoes that on a running process, remote ones too.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

from distributed import WorkerPlugin

from labkit.allocator import keep_memory

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
        keep_memory()
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
_PATIENCE = 60.0  # seconds; an import that takes longer is not waited for


def wait_for_torch() -> None:
    """Return once torch is imported here: a task that imports a part of it meanwhile can abort the worker."""
    if _preloading is not None:
        _preloading.join(_PATIENCE)


def _preload(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
