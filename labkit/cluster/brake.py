"""Brake: a program that lets another process compute for one part of the time only, by stopping it in between.

    python brake.py PID FACTOR

It works on whatever the process does, also in compiled code, and ends when its standard input does, when the process
is gone, or when whoever started it is; in each case the process goes on as before. A thread of the notebook could do
the same, but would leave the process stopped for ever if the notebook's kernel were killed at the wrong moment.
"""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import psutil

PERIOD = 0.03  # seconds of one turn, computing and stopped; Dask's heartbeats and gloo do not mind
_LOOK = 0.0005  # seconds between two looks at whether it has stopped
SHORTEST = 0.002  # seconds of computing, so that the signals themselves take no part worth mentioning


def hold(process: psutil.Process, factor: float) -> None:
    """Let `process` compute 1/factor of the time."""
    parent = os.getppid()

    def released_within(seconds: float) -> bool:
        return bool(select.select([sys.stdin], [], [], seconds)[0]) or os.getppid() != parent

    share = max(PERIOD / factor, SHORTEST)
    owed = 0.0  # seconds of standing still that its computing has cost; what sleeping makes too long evens out
    mark = perf_counter()
    while not released_within(share):
        process.suspend()
        while not stands_still(process.pid) and not released_within(_LOOK):
            pass
        mark, since = perf_counter(), mark
        owed += (factor - 1) * (mark - since)
        if released_within(max(owed, 0.0)):
            return
        process.resume()
        mark, since = perf_counter(), mark
        owed -= mark - since


def stands_still(pid: int) -> bool:
    """Whether all threads have stopped; one that waits for a core does so only when its turn has come."""
    return not any(moves(thread) for thread in Path(f"/proc/{pid}/task").glob("*"))  # nobody seen but on Linux


def moves(thread: Path) -> bool:
    """Whether a thread, as a folder of /proc, is there and not stopped."""
    try:
        state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it has ended
        return False
    return state not in "TZX"


def main(pid: int, factor: float) -> None:
    """Hold the process until released."""
    with suppress(psutil.NoSuchProcess):  # its end is ours
        process = psutil.Process(pid)
        print("ready", flush=True)
        try:
            hold(process, factor)
        finally:
            process.resume()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
