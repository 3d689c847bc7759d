"""How long it takes on a running cluster from the call of `train` to the end of the first optimiser step.

Run `python -m tests.benchmarks.bench_warm_start` (or with `--times`); the last line is one JSON object. An MLP on
digits, two ranks over gloo; it counts when the later of the two ranks has ended its step. Beside it Ray Train, from its
second `fit` on, and Accelerate's notebook launcher, which forks the notebook's process; each in an environment of its
own under ~/.cache/labkit/bench, made the first time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from statistics import median
from typing import Any

from tests.benchmarks.contest import Skipped, machine, python_with, script, spread

RAY, ACCELERATE, SKLEARN = "2.60.0", "1.15.0", "1.9.1"
AIM = 0.1  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--fits", type=int, default=3, help="of Ray Train after its first")
    given = parser.parse_args()
    print(f"{machine()}, {given.times} starts")
    found: dict[str, Any] = {"benchmark": "warm_start", "times": given.times}
    found["labkit_seconds"] = shown("labkit", script("ours_start", str(given.times)))
    found["ray"] = beside("Ray Train", lambda: ray(given.fits))
    found["fork"] = beside("Accelerate's fork", lambda: fork(given.times))
    print(f"median {1e3 * found['labkit_seconds']:.0f} ms (aim: at most {1e3 * AIM:.0f} ms)")
    print(json.dumps(found))


def ray(fits: int) -> dict[str, Any]:
    python = python_with(f"ray-{RAY}", f"ray[train]=={RAY}", f"scikit-learn=={SKLEARN}")
    return script("ray_start", str(fits), python=python)


def fork(times: int) -> dict[str, Any]:
    python = python_with(f"accelerate-{ACCELERATE}", f"accelerate=={ACCELERATE}", f"scikit-learn=={SKLEARN}")
    return script("fork_start", str(times), python=python)


def shown(name: str, said: dict[str, Any]) -> float:
    """The median of the later starts, in seconds."""
    print(f"{name:<18}{spread(said['seconds'])} s, the first time {said['first']:.3g} s", flush=True)
    return median(said["seconds"])


def beside(name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"seconds": shown(name, run())}
    except Skipped as reason:
        print(f"{name:<18}skipped: {reason}")
        return {"skipped": str(reason)}


if __name__ == "__main__":
    main()
