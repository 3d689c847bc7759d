"""Real seconds over a slow link next to those that the virtual clock predicts, for algorithms that send less.

Run `python -m tests.benchmarks.bench_slow_link` (or with `--steps`, `--rate`) as root; the last line is one JSON
object. Two workers on hosts of their own (network namespaces, `tests/network.py`), each of which sends and receives at
20 Mbit/s. An MLP of 154 kB on digits takes the same number of steps with every algorithm. What the clock needs is
measured first: the latency by the echo of a few bytes and the bandwidth by many, from host to host, and the seconds of
a step by training without exchange.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
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
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--rate", default="20mbit")
    given = parser.parse_args()
    if why := obstacle():
        print(json.dumps({"benchmark": "slow_link", "skipped": why}))
        return
    print(f"{machine()}, links of {given.rate}, {given.steps} steps")
    with Hosts(2) as hosts, lab_on(hosts) as lab:
        settings = {"data": lk.data.load("digits"), "steps": given.steps}
        train(lk.Cluster(lab), lk.algorithms.LocalSGD(EVERY), **settings)  # workers import
        hosts.limit(given.rate)
        link = measured_link(lab)
        step = train(lk.Cluster(lab), lk.algorithms.Independent(), **settings).seconds / given.steps
        print(f"latency {1e3 * link.latency:.2f} ms, {link.bandwidth / 1e6:.3f} MB/s, {1e3 * step:.2f} ms a step")
        print(f"{'':<16}{'measured':>11}{'predicted':>11}{'off by':>9}{'accuracy':>10}{'sent':>10}")
        rows = {name: row(lab, name, algorithm, link, step, **settings) for name, algorithm in algorithms().items()}
    print(json.dumps({"benchmark": "slow_link", "steps": given.steps, **rows}))


def algorithms() -> Mapping[str, Any]:
    return {
        "all-reduce": lk.algorithms.AllReduce(),
        "top-k": lk.algorithms.Compressed(lk.algorithms.AllReduce(), TopK(0.01)),
        "local SGD": lk.algorithms.LocalSGD(EVERY),
        "DiLoCo": lk.algorithms.DiLoCo(EVERY),
    }


def row(lab: Lab, name: str, algorithm: Any, link: lk.Link, step: float, **settings: Any) -> dict[str, float]:
    """One algorithm's seconds, real and predicted."""
    real = train(lk.Cluster(lab), algorithm, **settings)
    virtual = train(lk.Simulator(network=link, step_seconds=step), algorithm, **settings)
    off = virtual.seconds / real.seconds - 1
    print(
        f"{name:<16}{real.seconds:>9.2f} s{virtual.seconds:>9.2f} s{off:>+9.1%}{real.final.accuracy or 0:>10.1%}"
        f"{real.bytes / 1e6:>7.2f} MB",
        flush=True,
    )
    return {"seconds": real.seconds, "predicted": virtual.seconds, "off": off}


def train(on: Any, algorithm: Any, data: Any, steps: int) -> lk.History:
    rounds = steps // getattr(algorithm, "every", 1)
    run = lk.train(mlp, data, algorithm, peers=2, rounds=rounds, batch_size=BATCH, evaluate_every=rounds, on=on)
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
