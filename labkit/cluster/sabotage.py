"""Sabotage: which process a worker is, and what slows it down; only where the worker's nanny lives in this kernel.

    python sabotage.py PID FACTOR

lets another process compute for one part of the time only, by stopping it in between. It works on whatever the process
does, also in compiled code, and ends when its standard input does, when the process is gone, or when whoever started it
is; in each case the process goes on as before. A thread of the notebook could do the same, but would leave the process
stopped for ever if the notebook's kernel were killed at the wrong moment. So that the program starts in a tenth of a
second, and whatever the path for imports is, this file loads neither labkit nor Dask.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from labkit.cluster.workers import WorkerInfo, WorkerPool

PERIOD = 0.03  # seconds of one turn, computing and stopped; Dask's heartbeats and gloo do not mind
MOST = 100.0  # beyond that other workers would take a slow one for a dead one
_LOOK = 0.0005  # seconds between two looks at whether it has stopped
_SHORTEST = 0.002  # seconds of computing, so that the signals themselves take no part worth mentioning


def process_of(lab: WorkerPool, worker: int | str | WorkerInfo) -> int:
    """The process number of a worker that is given by its number or name, its address, or its row of `lab.workers`.

    Raises SettingError where this kernel did not start the worker, or where there is none of that name.
    """
    from distributed import Nanny

    from labkit.errors import SettingError

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
        self._program: subprocess.Popen[Any] = subprocess.Popen(
            [sys.executable, "-P", __file__, str(pid), str(factor)],  # -P: apart from the modules beside this one
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # an interrupt of the notebook is none for this
        )
        assert self._program.stdout is not None
        self._program.stdout.readline()  # "ready", or nothing where the process is gone

    def release(self) -> None:
        """Let the process go on as before; harmless where either is gone."""
        from labkit.cluster import deadlines

        self._program.communicate(timeout=deadlines.BRAKE)


# -- the program


def _hold(process: psutil.Process, factor: float) -> None:
    """Let `process` compute 1/factor of the time."""
    parent = os.getppid()

    def released_within(seconds: float) -> bool:
        return bool(select.select([sys.stdin], [], [], seconds)[0]) or os.getppid() != parent

    share = max(PERIOD / factor, _SHORTEST)
    owed = 0.0  # seconds of standing still that its computing has cost; what sleeping makes too long evens out
    mark = perf_counter()
    while not released_within(share):
        process.suspend()
        while not _stands_still(process.pid) and not released_within(_LOOK):
            pass
        mark, since = perf_counter(), mark
        owed += (factor - 1) * (mark - since)
        if released_within(max(owed, 0.0)):
            return
        process.resume()
        mark, since = perf_counter(), mark
        owed -= mark - since


def _stands_still(pid: int) -> bool:
    """Whether all threads have stopped; one that waits for a core does so only when its turn has come."""
    return not any(_moves(thread) for thread in Path(f"/proc/{pid}/task").glob("*"))  # nobody seen but on Linux


def _moves(thread: Path) -> bool:
    """Whether a thread, as a folder of /proc, is there and not stopped."""
    try:
        state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it has ended
        return False
    return state not in "TZX"


def _main(pid: int, factor: float) -> None:
    with suppress(psutil.NoSuchProcess):  # its end is ours
        process = psutil.Process(pid)
        print("ready", flush=True)
        try:
            _hold(process, factor)
        finally:
            process.resume()


if __name__ == "__main__":
    _main(int(sys.argv[1]), float(sys.argv[2]))
