"""Real seconds over a slow link next to those that the virtual clock predicts, for algorithms that send less.

Run `python -m tests.benchmarks.bench_slow_link` (or with `--steps`, `--rate`) as root; the last line is one JSON
object. Two workers on hosts of their own (network namespaces, `tests/network.py`), each of which sends and receives at
20 Mbit/s. An MLP of 154 kB on digits takes the same number of steps with every algorithm. What the clock needs is
measured first: the seconds of each algorithm's step while the link is not yet limited, then the latency by an echo of a
few bytes and the bandwidth by many. First rounds, in which ranks compare notes, do not count, and neither reports nor
checkpoints share the link.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import labkit as lk
from labkit.cluster.lab import Lab
from labkit.exchange import TopK
from tests.benchmarks.contest import machine
from tests.network import Hosts, lab_on, obstacle

AIM = 0.2  # of the measured seconds, by which the predicted ones may differ
EVERY = 16  # local steps of those who seldom meet
BATCH = 32
BYTES = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--rate", default="20mbit")
    given = parser.parse_args()
    if why := obstacle():
        print(json.dumps({"benchmark": "slow_link", "skipped": why}))
        return
    print(f"{machine()}, links of {given.rate}, {given.steps} steps")
    with Hosts(2) as hosts, lab_on(hosts) as lab:
        on, settings = lk.Cluster(lab, report_every=None, checkpoint_every=10**9), (lk.data.load("digits"), given.steps)
        steps = {}
        for name, algorithm in algorithms().items():
            tried = [median(rounds(train(on, algorithm, *settings))) for _ in range(3)]  # in the first workers import
            steps[name] = min(tried) / algorithm.every
        hosts.limit(given.rate)
        link = measured_link(lab)
        print(f"latency {1e3 * link.latency:.2f} ms, {link.bandwidth / 1e6:.3f} MB/s")
        print(f"{'':<12}{'a step':>9}{'measured':>12}{'predicted':>11}{'off by':>9}{'accuracy':>10}{'sent':>11}")
        rows: dict[str, dict[str, float]] = {}
        for name, algorithm in algorithms().items():
            real = train(on, algorithm, *settings)
            virtual = train(lk.Simulator(network=link, step_seconds=steps[name]), algorithm, *settings)
            rows[name] = shown(name, steps[name], real, virtual)
    worst = max(abs(row["off"]) for row in rows.values())
    print(f"predictions are off by {worst:.0%} at most (aim: {AIM:.0%})")
    gains = {name: rows["all-reduce"]["seconds"] / row["seconds"] for name, row in rows.items() if name != "all-reduce"}
    print(json.dumps({"benchmark": "slow_link", "steps": given.steps, "times_as_fast": gains, "off": worst, **rows}))


def algorithms() -> Mapping[str, Any]:
    return {
        "all-reduce": lk.algorithms.AllReduce(),
        "top-k": lk.algorithms.Compressed(lk.algorithms.AllReduce(), TopK(0.01)),
        "local SGD": lk.algorithms.LocalSGD(EVERY),
        "DiLoCo": lk.algorithms.DiLoCo(EVERY),
    }


def shown(name: str, step: float, real: lk.History, virtual: lk.History) -> dict[str, float]:
    """One algorithm's seconds, real and predicted."""
    seconds, predicted = sum(rounds(real)), sum(rounds(virtual))
    off = predicted / seconds - 1
    print(
        f"{name:<12}{1e3 * step:>6.2f} ms{seconds:>10.2f} s{predicted:>9.2f} s{off:>+9.1%}"
        f"{real.final.accuracy or 0:>10.1%}{real.bytes / 1e6:>8.2f} MB",
        flush=True,
    )
    return {"seconds": seconds, "predicted": predicted, "off": off}


def rounds(history: lk.History) -> list[float]:
    """The seconds of every round but the first."""
    return [after.seconds - before.seconds for before, after in pairwise(history.rows)]


def train(on: Any, algorithm: Any, data: lk.data.Dataset, steps: int) -> lk.History:
    number = steps // algorithm.every
    run = lk.train(mlp, data, algorithm, peers=2, rounds=number, batch_size=BATCH, evaluate_every=number, on=on)
    return run.result()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))


# -- the link


def measured_link(lab: Lab) -> lk.Link:
    """Latency and bandwidth between the lab's two workers, by messages of the process group."""
    few, many = lab.launch(echoes, ranks=2).result()[0]
    return lk.Link(latency=few, bandwidth=BYTES / (many - few))


def echoes() -> tuple[float, float]:
    """Seconds on the way to the other rank, for a few bytes and for many: an echo is a few bytes."""
    few, many, echo = torch.zeros(1), torch.zeros(BYTES // 4), torch.zeros(1)

    def seconds(message: torch.Tensor) -> float:
        begun = time.perf_counter()
        if dist.get_rank() == 0:
            dist.send(message, 1)
            dist.recv(echo, 1)
        else:
            dist.recv(message, 0)
            dist.send(echo, 0)
        return time.perf_counter() - begun

    for _ in range(3):
        seconds(few)
    back = median(seconds(few) for _ in range(20)) / 2
    return back, median(seconds(many) for _ in range(3)) - back


if __name__ == "__main__":
    main()
