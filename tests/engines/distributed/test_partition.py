"""Training across a network that is cut in two: it goes on where it may, or ends in a sentence within its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

import labkit as lk
from labkit.algorithms import AllReduce
from labkit.cluster.lab import Lab
from labkit.errors import WorkerLost
from labkit.training.run import Run
from tests.cluster.ranks import works
from tests.engines.experiments import SGD, mlp
from tests.network import Hosts, lab_on, needs_hosts

pytestmark = [pytest.mark.long, pytest.mark.paired]  # hosts of their own, and long silences

TIMEOUT = 4.0  # seconds the ranks wait for each other's messages
COMEBACK = 3.0  # seconds in which a lost worker may be back
OVERHEAD = 15.0  # seconds to ask those who cannot answer any more, and to begin again


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    needs_hosts()
    with Hosts(2) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def spread(hosts: Hosts) -> Iterator[Lab]:
    """One worker on each of two hosts, both of which have trained before."""
    with lab_on(hosts) as lab:
        train(lab, rounds=2).result(timeout=120)
        yield lab


def train(lab: Lab, rounds: int = 1_000_000, **settings: object) -> Run:
    on = lk.Cluster(lab, checkpoint_every=10, **settings)
    options = {"peers": 2, "rounds": rounds, "batch_size": 16, "optimizer": SGD}
    return lk.train(mlp, lk.data.load("digits"), AllReduce(), on=on, **options)


def until(condition: Callable[[], bool], limit: float, otherwise: str) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def cut_off_while_it_trains(hosts: Hosts, lab: Lab, **settings: object) -> Run:
    run = train(lab, timeout=TIMEOUT, **settings)
    until(lambda: len(run.history.rows) > 30 or run.done, 30, "no rounds came back")
    assert not run.done, run.error
    hosts.cut(1)
    return run


def test_an_elastic_run_goes_on_without_the_host_that_is_cut_off(hosts: Hosts, spread: Lab) -> None:
    before = spread.workers[1].address
    run, begin = cut_off_while_it_trains(hosts, spread, elastic=True), time.monotonic()
    until(lambda: len(run.history.events) > 1 or run.done, TIMEOUT + OVERHEAD, "nothing is told")
    rows = len(run.history.rows)
    until(lambda: len(run.history.rows) > rows or run.done, 5, "no round is finished any more")
    assert time.monotonic() - begin < TIMEOUT + OVERHEAD
    run.stop()
    history = run.result(timeout=10)
    assert [event.text for event in history.events][-1].endswith("with 1 worker")
    assert [row.round for row in history.rows] == list(range(1, len(history.rows) + 1))

    hosts.heal(1)  # nobody hangs there: a new worker is of use at once
    until(lambda: before not in [it.address for it in spread.workers], 40, "the worker that was cut off is as it was")
    spread.client.wait_for_workers(2, timeout=40)
    assert works(spread)


def test_a_host_that_is_cut_off_ends_the_run_in_one_sentence_within_its_time(
    hosts: Hosts, spread: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.cluster.deadlines.COMEBACK", COMEBACK)
    run, begin = cut_off_while_it_trains(hosts, spread), time.monotonic()
    with pytest.raises(WorkerLost, match=r"rank 1 on worker tcp://\S+ .*network.*elastic=True"):
        run.result(timeout=60)
    assert time.monotonic() - begin < TIMEOUT + COMEBACK + OVERHEAD
