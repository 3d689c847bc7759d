"""Sabotage: which process a worker is, and what slows it down; only where the worker's nanny lives in this kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Nanny

from labkit.cluster import brake
from labkit.errors import SettingError

if TYPE_CHECKING:
    from labkit.cluster.lab import Lab, WorkerInfo


MOST = 100.0  # beyond that other workers would take a slow one for a dead one
_PATIENCE = 5.0  # seconds for a brake to let go


def process_of(lab: Lab, worker: int | str | WorkerInfo) -> int:
    """The process number of a worker that is given by its number or name, its address, or its row of `lab.workers`.

    Raises SettingError where this kernel did not start the worker, or where there is none of that name.
    """
    nannies = [it for it in getattr(lab.cluster, "workers", {}).values() if isinstance(it, Nanny)]
    if not nannies:
        raise SettingError(
            f"{lab!r} was not started by this kernel, whose own workers alone it may harm: "
            "start some with lk.connect(workers=2)."
        )
    wanted = str(getattr(worker, "name", worker))
    for nanny in nannies:
        if wanted in (str(nanny.name), nanny.worker_address):
            if nanny.pid is None:
                raise SettingError(f"worker {wanted} is just starting: try again in a second.")
            return int(nanny.pid)
    names = ", ".join(sorted((str(nanny.name) for nanny in nannies), key=lambda name: (len(name), name)))
    raise SettingError(f"there is no worker {worker!r} in this lab: name one of {names}.")


class Brake:
    """Makes what a process computes take `factor` times as long, until it is released."""

    def __init__(self, pid: int, factor: float) -> None:
        # by its path and apart from ours (-P): it needs nothing of labkit, and starts in a tenth of a second
        command = [sys.executable, "-P", str(Path(brake.__file__)), str(pid), str(factor)]
        self._program: subprocess.Popen[Any] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # an interrupt of the notebook is none for this
        )
        assert self._program.stdout is not None
        self._program.stdout.readline()  # "ready", or nothing where the process is gone

    def release(self) -> None:
        """Let the process go on as before; harmless where either is gone."""
        self._program.communicate(timeout=_PATIENCE)
