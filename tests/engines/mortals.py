"""What the tests of recovery share: a cluster whose workers may be killed, and runs that are disturbed on the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import labkit as lk
from labkit.cluster.lab import Lab
from labkit.cluster.local import local_cluster
from labkit.history.history import History
from labkit.training.run import Run
from tests.engines.experiments import MOMENTUM, mlp

ROUNDS = 150


@contextmanager
def mortal(workers: int = 2) -> Iterator[Lab]:
    """A cluster whose workers may be killed."""
    with local_cluster(workers, threads=1, memory=4 << 30) as cluster, lk.connect(cluster) as lab:
        yield lab


def start(on, algorithm, model=mlp, **settings) -> Run:
    settings = {"peers": 2, "rounds": ROUNDS, "batch_size": 16, "seed": 3, "optimizer": MOMENTUM} | settings
    return lk.train(model, lk.data.load("digits"), algorithm, on=on, **settings)


def heard(lab: Lab, **settings: Any) -> lk.Cluster:
    """An engine that tells of rounds as they happen: else a short run may be over when its first half is known."""
    return lk.Cluster(lab, report_every=0.02, **settings)


def reach(run: Run, round: int) -> None:
    """Wait until the run has reported a round, or is over."""
    deadline = time.monotonic() + 60
    while len(run.history.rows) < round and not run.done:
        assert time.monotonic() < deadline, f"round {round} was not reached"
        time.sleep(0.002)


def kill(lab: Lab, *ranks: int, by: int = signal.SIGKILL) -> None:
    pids = [worker.pid for worker in lab.workers]
    for rank in ranks:
        os.kill(pids[rank], by)
    dead, limit = {pids[rank] for rank in ranks if by == signal.SIGKILL}, time.monotonic() + 10
    while dead & {worker.pid for worker in lab.workers}:  # or the next one could be meant for the same
        assert time.monotonic() < limit, "nobody has noticed"
        time.sleep(0.002)


def whole(lab: Lab, workers: int = 2) -> None:
    """Wait until the lab has all its workers."""
    deadline = time.monotonic() + 30
    while len(lab.workers) < workers:
        assert time.monotonic() < deadline, "a worker did not come back"
        time.sleep(0.02)


def same(one: History, other: History) -> bool:
    """Whether all models are equal to the last bit, and so are all losses and bytes."""
    models = zip(one.models, other.models, strict=True)
    states = [(a, b) for m, n in models for a, b in zip(m.state_dict().values(), n.state_dict().values(), strict=True)]
    rows = [(a.round, a.losses, a.accuracies, a.bytes) for a in one.rows]
    return all(torch.equal(a, b) for a, b in states) and rows == [
        (b.round, b.losses, b.accuracies, b.bytes) for b in other.rows
    ]
