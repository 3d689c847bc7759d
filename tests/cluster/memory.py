"""Workers that have used up their memory, for real."""

from __future__ import annotations

from typing import Any

import psutil

from labkit.cluster.lab import Lab

MEMORY = 800 << 20  # bytes of a worker


def fill(share: float, dask_worker: Any) -> None:
    """Hold as much memory as brings this worker's process to that share of its limit; 0 lets it go."""
    dask_worker.held = None
    wanted = share * MEMORY - psutil.Process().memory_info().rss
    dask_worker.held = bytearray(b"x") * int(max(wanted, 0))


def paused(lab: Lab) -> int:
    """How many workers begin nothing new."""
    return sum(it.status.name == "paused" for it in lab.cluster.scheduler.workers.values())
