"""What it costs that the notebook sees losses and lanes as they happen: a cluster run with and without them.

Run `python -m tests.benchmarks.bench_metrics` (or with `--pairs`, `--seconds`); the last line is one JSON object. Both
kinds of run take turns on the same two workers; without, ranks report when they have ended (`report_every=None`). Steps
per second are the workers' own, of the rounds after the first tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from statistics import median
from typing import Any

import labkit as lk
from labkit.cluster.lab import Lab
from tests.benchmarks.contest import HERE, machine, ratio, turns

sys.path.insert(0, str(HERE))
import first_steps
import pictures

AIM = 0.98


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run, about")
    given = parser.parse_args()
    print(f"{machine()}, {given.pairs} pairs a row")
    tasks: dict[str, tuple[Any, Any, int]] = {
        "cnn": (pictures.cnn(), pictures.pictures(), pictures.BATCH),
        "mlp": (first_steps.mlp(), first_steps.digits(), first_steps.BATCH),
    }
    kept = {}
    with lk.connect(workers=2) as lab:
        for name, (model, (x, y), batch) in tasks.items():
            train = partial(rate, lab, model, lk.data.from_tensors(x, y), batch)
            train(10)  # workers import
            rounds = max(20, int(given.seconds * train(20)))
            ways = {"with": partial(train, rounds), "without": partial(train, rounds, None)}
            rates = turns(ways, given.pairs)
            kept[name] = ratio(rates["with"], rates["without"])
            print(
                f"{name}: {median(rates['with']):.1f} steps/s with metrics, {median(rates['without']):.1f} without, "
                f"{kept[name]:.3f} (aim: at least {AIM}); load {os.getloadavg()[0]:.2f}",
                flush=True,
            )
    print(json.dumps({"benchmark": "metrics", "pairs": given.pairs, "kept": kept}))


def rate(
    lab: Lab, model: Any, data: Any, batch: int, rounds: int, every: float | None = lk.Cluster.report_every
) -> float:
    """Steps per second of the slower worker."""
    on = lk.Cluster(lab, report_every=every)
    history = lk.train(model, data, rounds=rounds, batch_size=batch, evaluate_every=rounds, on=on).result()
    rows = history.rows[:-1]  # the last one's seconds include a test of the model
    warm = max(1, len(rows) // 10)
    return (len(rows) - warm) / (rows[-1].seconds - rows[warm - 1].seconds)


if __name__ == "__main__":
    main()
