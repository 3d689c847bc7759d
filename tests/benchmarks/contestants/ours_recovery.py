"""From the kill −9 of one of labkit's two workers to the end of the next step: `ours_recovery.py KILLS [elastic]`.

The next step is the first one that the later of the new group's ranks has ended: of both workers when the nanny has
the lost one back, or with "elastic" of the one that is left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from first_steps import BATCH, RANKS, Stamped, all_began, digits, mlp

import labkit as lk
from labkit.cluster.lab import Lab

BEFORE = 6.0  # seconds of undisturbed training, in which there is a checkpoint


def main() -> None:
    elastic = "elastic" in sys.argv[2:]
    with lk.connect(workers=RANKS) as lab:
        seconds = [recovery(lab, elastic, victim % RANKS) for victim in range(int(sys.argv[1]))]
    print(json.dumps({"seconds": seconds}), flush=True)


def recovery(lab: Lab, elastic: bool, victim: int) -> float:
    lab.client.wait_for_workers(RANKS)
    x, y = digits()
    with tempfile.TemporaryDirectory() as folder:
        begun, made = time.time(), partial(Stamped, folder=folder)
        on = lk.Cluster(lab, elastic=elastic)
        run = lk.train(
            mlp(), lk.data.from_tensors(x, y), rounds=1_000_000, batch_size=BATCH, optimizer=made, peers=RANKS, on=on
        )
        all_began(Path(folder), begun)
        time.sleep(BEFORE)
        pid, killed = lab.workers[victim].pid, time.time()
        os.kill(pid, signal.SIGKILL)
        # with elastic, the one rank that is left holds both peers, each with an optimiser of its own
        took = all_began(Path(folder), killed)
        run.stop()
        history = run.result()
    if not any(event.kind == "resumed" for event in history.events):
        raise SystemExit(f"the history does not say that it went on: {history.events}")
    return took


if __name__ == "__main__":
    main()
