"""What the tests of gangs run as ranks, and what they ask of a lab afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from labkit.cluster.gang import rank
from labkit.cluster.lab import Lab


def add(x: float = 0) -> float:
    """1 + 2 + … of the ranks, and x from each: every rank must have come, and all of them must hear all."""
    total = torch.tensor(dist.get_rank() + 1.0 + x)
    dist.all_reduce(total)
    return total.item()


def exchange_for_ever() -> None:
    rank.tell({"pid": os.getpid()})
    while True:
        dist.all_reduce(torch.ones(1000))


def nap(seconds: float) -> tuple[float, float]:
    dist.barrier()
    begin = time.time()
    time.sleep(seconds)
    return begin, time.time()


def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def works(lab: Lab) -> bool:
    return lab.launch(add, ranks=2).result(timeout=60) == [3.0, 3.0]


def pids(lab: Lab) -> set[int]:
    return {worker.pid for worker in lab.workers}


class Clock:
    """`with Clock(3):` fails when its block takes longer than 3 seconds."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __enter__(self) -> None:
        self.begin = time.monotonic()

    def __exit__(self, error: Any, *_: object) -> None:
        took = time.monotonic() - self.begin
        assert error is not None or took < self.limit, f"took {took:.1f} s"
