"""How long it takes to schedule a million tasks on ten thousand workers, and how far from the lower bound it ends.

Run `python -m tests.benchmarks.bench_schedule` (or with `--tasks`, `--workers`); the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from labkit.tasks.schedule import Schedule, schedule
from labkit.tasks.split import split
from labkit.tasks.sync import SSP, synchronize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=10_000)
    given = parser.parse_args()
    n, m = given.tasks, given.workers
    random = np.random.default_rng(0)
    costs = random.lognormal(sigma=1.0, size=n)
    three = random.choice([0.5, 1.0, 2.0], size=m)
    all_different = random.uniform(0.5, 2.0, size=m)
    earlier = (np.arange(n) * random.uniform(0.9, 1.0, size=n)).astype(int).tolist()
    after_one = [[i] if i < k else [] for k, i in enumerate(earlier)]

    print(f"{n:,} tasks (log-normal costs) on {m:,} workers")
    print(f"{'policy':<12}{'speeds':<16}{'after':<8}{'seconds':>9}{'CPU':>7}{'makespan / lower bound':>26}")
    cases: list[tuple[str, str, Any, str, Any]] = [
        *((policy, "equal", None, "", None) for policy in ("fifo", "list", "lpt", "stealing")),
        *((policy, "three", three, "", None) for policy in ("fifo", "list", "lpt", "stealing")),
        ("lpt", "all different", all_different, "", None),
        *((policy, "equal", None, "one", after_one) for policy in ("list", "stealing")),
    ]
    rows = []
    for policy, speed, speeds, order, after in cases:
        started = time.process_time()
        plan, seconds = timed(lambda: schedule(costs, m, policy, speeds=speeds, after=after))  # noqa: B023
        cpu = time.process_time() - started
        assert_whole(plan, n)
        ratio = plan.makespan / plan.lower_bound
        print(f"{policy:<12}{speed:<16}{order:<8}{seconds:>9.2f}{cpu:>7.2f}{ratio:>26.4f}")
        rows.append({"policy": policy, "speeds": speed, "after": order, "seconds": seconds, "cpu": cpu, "ratio": ratio})

    print("\nAround it")
    layered, heft = timed(lambda: schedule(*layers(random, 40, 50), "heft", after=LAYERS, transfer=0.1))
    others = {
        "heft, 2,000 tasks in 40 layers on 100 workers": heft,
        f"split({n:,}, {m:,}).check()": timed(lambda: split(n, m).check())[1],
        "synchronize 1,000 workers × 1,000 steps, SSP(3)": timed(
            lambda: synchronize(random.exponential(size=(1000, 1000)), SSP(3))
        )[1],
        "picture of the last schedule, as PNG": timed(lambda: plan.plot().png())[1],
    }
    assert_whole(layered, 2000)
    for what, seconds in others.items():
        print(f"{what:<60}{seconds:>8.3f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{'largest memory of the process':<60}{peak:>8.2f} GiB")
    print(json.dumps({"tasks": n, "workers": m, "schedules": rows, "others": others, "peak_gib": peak}))


LAYERS: list[list[int]] = []


def layers(random: np.random.Generator, depth: int, width: int) -> tuple[Any, int]:
    """Costs of a layered graph, each task after three of the layer before; its edges go to LAYERS."""
    for k in range(depth * width):
        above = np.arange(k // width * width - width, k // width * width)
        LAYERS.append(random.choice(above, 3, replace=False).tolist() if k >= width else [])
    return random.exponential(size=depth * width), 100


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def assert_whole(plan: Schedule, tasks: int) -> None:
    """A schedule that is fast because it is wrong proves nothing: one task at a time on a worker, and every task."""
    order = np.lexsort((plan.start, plan.worker))
    worker, start, finish = plan.worker[order], plan.start[order], plan.finish[order]
    overlap = (worker[1:] == worker[:-1]) & (start[1:] < finish[:-1])
    if len(plan) != tasks or overlap.any() or plan.makespan < plan.lower_bound * (1 - 1e-9):
        raise SystemExit(f"{plan!r} is not a schedule")


if __name__ == "__main__":
    main()
