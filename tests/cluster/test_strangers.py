"""Another user of the same machine: no port lets him in, and nobody waits for him, whatever he says or does not say."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
import torch
import torch.distributed as dist
from distributed import Security
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce, ParameterServer
from labkit.cluster.lab import Lab
from labkit.cluster.local import local_cluster
from labkit.errors import GangError
from tests.cluster.strangers import Knock, Stranger, needs_root, stranger

pytestmark = [pytest.mark.alone, needs_root]

DIGITS = lk.data.load("digits")
PAGES_OF_WORKERS = '{"paths": ["/sitemap.json"]}'
PATIENCE = 20.0  # seconds; one silent stranger at a time would take fifty times five


@pytest.fixture(scope="module")
def somebody() -> Iterator[Stranger]:
    with stranger() as other:
        yield other


def listening(lab: Lab) -> set[int]:
    """The ports of the kernel, its nannies and its workers."""
    processes = [psutil.Process(), *(psutil.Process(worker.pid) for worker in lab.workers)]
    return {it.laddr.port for one in processes for it in one.net_connections("inet") if it.status == psutil.CONN_LISTEN}


def in_the_dark(knock: Knock) -> bool:
    """Whether the stranger heard nothing, or an alert of TLS, or of a page that is not there."""
    answer = knock.answer
    return not answer or answer[0] == "\x15" or " 404 " in answer or " 400 " in answer or PAGES_OF_WORKERS in answer


def test_no_port_of_a_lab_lets_a_stranger_in_nor_waits_for_him(lab: Lab, somebody: Stranger) -> None:
    ports = listening(lab)
    assert len(ports) >= 8
    knocks = somebody.knock(ports)
    assert len(knocks) == 8 * len(ports) and sum(it.connected for it in knocks) >= 6 * len(ports)
    assert [it for it in knocks if not in_the_dark(it)] == []
    begun = time.monotonic()
    assert lab.map(abs, range(-100, 0)).result() == list(range(100, 0, -1))
    assert lab.launch(os.getpid, ranks=2).result() == [worker.pid for worker in lab.workers]
    assert repr(lab) == "Lab: 2 workers × 1 thread, local"
    assert time.monotonic() - begun < PATIENCE


def test_a_stranger_is_heard_where_nothing_is_encrypted(somebody: Stranger) -> None:
    """So that the test above would find it."""
    with local_cluster(1, threads=1, memory=2 << 30, security=Security(require_encryption=False)) as cluster:
        port = int(cluster.scheduler_address.rpartition(":")[2])
        assert any(not in_the_dark(it) for it in somebody.knock([port]))


@pytest.mark.parametrize("algorithm", [AllReduce(), ParameterServer(lk.BSP())], ids=["group", "server"])
def test_a_training_that_strangers_knock_at_ends_as_it_would_without_them(
    lab: Lab, somebody: Stranger, algorithm: lk.algorithms.Algorithm
) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    alone = lk.train(model(), DIGITS, algorithm, rounds=40, on=lab).result()
    before, knocks = listening(lab), []
    run = lk.train(model(), DIGITS, algorithm, rounds=40, on=lab)
    while not run.done:
        if opened := listening(lab) - before:
            knocks += somebody.knock(opened)
            before |= opened
    beside = run.result()
    assert all(torch.equal(one, other) for one, other in zip(parameters(alone), parameters(beside), strict=True))
    assert knocks
    assert [it for it in knocks if not in_the_dark(it)] == []


def test_a_stranger_in_the_place_of_a_rank_is_put_out_before_anything_is_said(lab: Lab) -> None:
    def ranks() -> list[object]:
        said: list[object] = [None, None]
        dist.all_gather_object(said, f"secret {dist.get_rank()}")  # which unpickles what others say
        return said

    lab.launch(ranks, ranks=2).result()
    with stranger() as other:
        other.lie_in_wait(4.0)
        begun = time.monotonic()
        while time.monotonic() - begun < 3.0:
            gang = lab.launch(ranks, ranks=2, timeout=10.0)
            with suppress(GangError):  # he broke it, but no more than that
                assert gang.result() == [["secret 0", "secret 1"]] * 2
        places, heard = other.loot()
    assert places
    assert heard == ""
    assert lab.launch(ranks, ranks=2).result() == [["secret 0", "secret 1"]] * 2


def parameters(history: lk.History) -> list[torch.Tensor]:
    return list(history.models[0].state_dict().values())
