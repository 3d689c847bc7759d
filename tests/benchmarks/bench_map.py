"""What `lab.map` costs over Dask's own `client.map` and `gather`, for many small tasks.

Run `python -m tests.benchmarks.bench_map` (or with `--tasks`, `--pairs`, `--workers`); the two ways take turns, so that
a busy machine slows both, and the ratio is the median of the ratios of neighbours. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil

import labkit as lk
from labkit.cluster.lab import Lab


def square(x: int) -> int:
    return x * x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=2_000)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    items = range(given.tasks)

    with lk.connect(workers=given.workers) as lab:

        def bare() -> list[int]:
            values: list[int] = lab.client.gather(lab.client.map(square, items, pure=False))
            return values

        def ours() -> list[int]:
            return lab.map(square, items).result()

        for way in (bare, ours, bare, ours):  # workers import, caches fill
            way()
        print(
            f"{given.tasks:,} tasks on {given.workers} workers, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        print(
            f"{'pair':>6}{'client.map':>12}{'lab.map':>12}{'ratio':>8}{'CPU:':>6}{'client.map':>12}{'lab.map':>10}{'ratio':>8}"
        )
        pairs = []
        for number in range(given.pairs):
            # whoever goes first in a pair goes second in the next
            order = (bare, ours) if number % 2 == 0 else (ours, bare)
            spent = {way: timed(way, given.tasks, lab) for way in order}
            pairs.append((*spent[bare], *spent[ours]))
            show(str(number), *pairs[-1])

    theirs, their_cpu, mine, my_cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(pair[2] / pair[0] for pair in pairs)
    cpu_ratio = statistics.median(pair[3] / pair[1] for pair in pairs)
    show("median", theirs, their_cpu, mine, my_cpu)
    result = {"benchmark": "map", "tasks": given.tasks, "workers": given.workers, "pairs": given.pairs}
    seconds = {"bare_seconds": theirs, "map_seconds": mine, "ratio": ratio, "cpu_ratio": cpu_ratio}
    print(json.dumps(result | seconds))


def show(name: str, theirs: float, their_cpu: float, mine: float, my_cpu: float) -> None:
    wall = f"{theirs:>10.3f} s{mine:>10.3f} s{mine / theirs:>8.3f}"
    print(f"{name:>6}{wall}{their_cpu:>16.3f} s{my_cpu:>8.3f} s{my_cpu / their_cpu:>8.3f}", flush=True)


def timed(way: Callable[[], list[Any]], tasks: int, lab: Lab) -> tuple[float, float]:
    """Seconds on the clock, and of the processors in the notebook's process and its workers together."""
    processes = [psutil.Process(), *(psutil.Process(worker.pid) for worker in lab.workers)]
    cpu, begin = cpu_seconds(processes), time.perf_counter()
    values = way()
    spent = time.perf_counter() - begin, cpu_seconds(processes) - cpu
    if values != [x * x for x in range(tasks)]:
        raise SystemExit(f"{way.__name__} gave wrong values")
    return spent


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


if __name__ == "__main__":
    main()
