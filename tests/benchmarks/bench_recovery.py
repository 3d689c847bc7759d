"""How long it takes from the kill −9 of one of two workers to the next optimiser step, next to torchrun.

Run `python -m tests.benchmarks.bench_recovery` (or with `--kills`); the last line is one JSON object. labkit goes on
from its last checkpoint when the nanny has the worker back, or with elastic=True on the one that is left. torchrun
starts both ranks again (`--max-restarts`), once as it is and once with a quicker look at its ranks
(`--monitor-interval 0.1`), from a checkpoint that the script saves itself.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.contest import HERE, machine, script, spread, torchrun

sys.path.insert(0, str(HERE))
from first_steps import RANKS, all_began

AIM = 1.0  # seconds
BEFORE = 6.0  # seconds of undisturbed training before each kill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    given = parser.parse_args()
    print(f"{machine()}, {given.kills} kills each")
    kills = str(given.kills)
    ways: dict[str, Callable[[], list[float]]] = {
        "elastic": lambda: list(script("ours_recovery", kills, "elastic")["seconds"]),
        "worker_back": lambda: list(script("ours_recovery", kills)["seconds"]),
        "torchrun": lambda: under_torchrun(given.kills),
        "torchrun_quick": lambda: under_torchrun(given.kills, "--monitor-interval=0.1"),
    }
    found: dict[str, Any] = {}
    for name, way in ways.items():
        seconds = way()
        found[name] = median(seconds)
        print(f"{name:<16}{spread(seconds)} s", flush=True)
    print(f"aim: at most {AIM:g} s")
    print(json.dumps({"benchmark": "recovery", "kills": given.kills, "seconds": found}))


def under_torchrun(kills: int, *options: str) -> list[float]:
    """Kill rank 1 again and again, as soon as it has trained for a while."""
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        folder, begun = Path(name), time.time()
        launcher = torchrun(RANKS, f"--max-restarts={kills}", *options)
        command = [sys.executable, *launcher, str(HERE / "torchrun_recovery.py"), name]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                all_began(folder, begun)
                for _ in range(kills):
                    time.sleep(BEFORE)
                    victim, killed = int((folder / "rank1").read_text()), time.time()
                    os.kill(victim, signal.SIGKILL)
                    seconds.append(all_began(folder, killed))
            finally:
                process.send_signal(signal.SIGTERM)  # it ends its ranks
                process.wait()
    return seconds


if __name__ == "__main__":
    main()
