"""How fast one GPU trains: stacked peers next to the loop over them, data parallelism next to torchrun with NCCL.

Run `python -m tests.benchmarks.bench_gpu` where an NVIDIA GPU is (or with `--pairs`, `--steps`); the last line is one
JSON object with the ratios and the device's name. Contestants are processes of their own, which take turns.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

import torch

from tests.benchmarks.bench_colearning import contestant, digits, saved, versus
from tests.benchmarks.contest import machine, ratio, script, spread, torchrun, turns

BATCHES = 64, 1_024  # of each rank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        reason = "torch sees no CUDA device here"
        print(json.dumps({"benchmark": "gpu", "skipped": reason}))
        return
    device = torch.cuda.get_device_name()
    print(f"{torch.cuda.device_count()} × {device}, {machine()}, {given.pairs} pairs a row")
    rows: dict[str, Any] = {f"loop: {it}": stacked(it, given.pairs) for it in ("MLP 64-64-10", "CNN 1×28×28")}
    rows |= {f"torchrun: batch {it}": parallel(it, given.steps, given.pairs) for it in BATCHES}
    print(json.dumps({"benchmark": "gpu", "device": device, "pairs": given.pairs, **rows}))


def stacked(model: str, pairs: int) -> float:
    """100 clients, 10 local steps a round: how many times as fast as the loop over them the stack is."""
    print(f"\n{model}, 100 clients on the GPU: the loop over them in plain PyTorch against labkit", flush=True)
    with saved(digits(model, 100, 6)) as task:
        loop = contestant("loop", task, threads=1, models="reused", device="cuda")
        return versus("loop", loop, contestant("ours", task, device="cuda"), pairs, aim=None)


def parallel(batch: int, steps: int, pairs: int) -> float:
    """One rank on each GPU: labkit's samples per second over those of torchrun."""
    print(f"\nAllReduce, CNN 1×28×28, batches of {batch:,} on each GPU: torchrun against labkit", flush=True)
    launcher = torchrun(torch.cuda.device_count())
    ways = {
        "torchrun": partial(script, "plain_ddp", str(steps), "gpu", str(batch), launcher=launcher),
        "labkit": partial(script, "ours_ddp", str(steps), "gpu", str(batch)),
    }
    found = turns({name: partial(rate, way) for name, way in ways.items()}, pairs)
    for name, rates in found.items():
        print(f"{name:<12}{spread(rates)} samples/s", flush=True)
    return ratio(found["labkit"], found["torchrun"])


def rate(run: Any) -> float:
    """Samples per second of one contestant."""
    return float(run()["samples_per_second"])


if __name__ == "__main__":
    main()
