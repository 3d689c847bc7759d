"""`lab.launch` when a worker, a client or the scheduler dies: known within seconds, and the others go on."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist

import labkit as lk
from labkit.cluster.gang.rank import Rank
from labkit.cluster.lab import Lab
from labkit.cluster.local import local_cluster
from labkit.errors import GangError, LabClosed, WorkerLost
from tests.cluster.kernels import gone, kernel
from tests.cluster.ranks import Clock, add, exchange_for_ever, pids, works
from tests.cluster.stock import stock_lab


@pytest.fixture(scope="module")
def mortal() -> Iterator[Lab]:
    """A cluster whose workers may be killed."""
    with stock_lab(2) as lab:
        yield lab


def test_a_killed_rank_is_named_within_a_second_and_its_siblings_are_free(mortal: Lab) -> None:
    gang = mortal.launch(exchange_for_ever)
    pid = {it["rank"]: it["pid"] for it in (gang.events.get(timeout=30), gang.events.get(timeout=30))}
    os.kill(pid[1], signal.SIGKILL)
    with Clock(2), pytest.raises(WorkerLost, match=rf"rank 1 with worker {gang.workers[1]} was lost"):
        gang.result()
    assert gang.lost == {1: gang.workers[1]}
    assert works(mortal)  # which waits for the worker to be back
    assert pid[0] in pids(mortal)


def test_a_worker_that_dies_while_the_function_is_on_its_way_is_named() -> None:
    """And whoever launches next is not kept waiting by what Dask still tries to send."""
    large = torch.zeros(8_000_000)
    # a cluster of its own, whose nannies stay however often their workers die
    with local_cluster(2, threads=1, memory=2 << 30) as cluster, lk.connect(cluster) as lab:
        for rank, wait in ((0, 0.0), (1, 0.0), (0, 0.2), (1, 0.2)):
            assert works(lab)
            gang = lab.launch(torch.sum, large, ranks=2)
            time.sleep(wait)
            os.kill(lab.workers[rank].pid, signal.SIGKILL)
            with suppress(WorkerLost):  # or it is done already
                assert gang.result(60) == [0, 0]
        assert works(lab)


class DiesWhileItJoins:
    """Loaded by a rank, it has the worker of rank `rank` killed as soon as torch begins to make its process group."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self) -> None: ...

    def __setstate__(self, state: dict[str, int]) -> None:
        from torch.distributed import distributed_c10d as c10d

        def die(count: int = c10d._group_count) -> None:  # type: ignore[attr-defined]
            while c10d._group_count == count:  # type: ignore[attr-defined]
                time.sleep(0.0001)
            os.kill(os.getpid(), signal.SIGKILL)

        if Rank.current is not None and Rank.current.rank == state["rank"]:
            threading.Thread(target=die, daemon=True).start()


def test_a_rank_that_is_killed_while_the_group_forms_wedges_nobody(mortal: Lab) -> None:
    with Clock(20), pytest.raises(WorkerLost):
        mortal.launch(DiesWhileItJoins(rank=1)).result()
    with Clock(20):
        assert works(mortal)


def test_a_survivor_of_a_group_that_was_never_made_meets_a_fresh_worker(mortal: Lab) -> None:
    def fail_to_join() -> None:
        from torch.distributed import distributed_c10d as c10d

        c10d._world.group_count += 1  # what init_process_group leaves where its peer dies at the wrong moment

    survivor, _ = mortal.workers
    mortal.client.submit(fail_to_join, workers=[survivor.address], pure=False).result()
    assert mortal.launch(add, timeout=5.0).result() == [3.0, 3.0]


def test_a_rank_that_never_leaves_its_own_code_gets_a_new_worker(mortal: Lab) -> None:
    def hang() -> None:
        if dist.get_rank() == 0:
            time.sleep(1000)
        raise LookupError("no more data")

    before = {worker.name: worker.pid for worker in mortal.workers}
    gang = mortal.launch(hang)
    with (
        Clock(8),
        pytest.raises(GangError, match=r"rank 1 on worker \S+ failed: LookupError: no more data"),
    ):
        gang.result()
    assert works(mortal)
    after = {worker.name: worker.pid for worker in mortal.workers}
    assert sum(before[name] != after[name] for name in before) == 1


def stuck_in_c() -> None:
    """Rank 1 keeps the interpreter to itself: none of its threads could say anything."""
    if dist.get_rank() == 1:
        ctypes.PyDLL(None).sleep(1000)
    dist.all_reduce(torch.ones(1))


def test_of_a_rank_that_hangs_the_error_says_where(mortal: Lab) -> None:
    assert works(mortal)
    with (
        Clock(40),
        pytest.raises(WorkerLost, match=r"rank 1 .* hung in stuck_in_c \(test_gang_deaths.py, line \d+\):") as e,
    ):
        mortal.launch(stuck_in_c, timeout=8.0).result()
    assert e.value.__notes__[0].startswith("Rank 1 was here, innermost first:\n  File ")


def test_closing_the_lab_ends_its_gangs(mortal: Lab) -> None:
    with lk.connect(mortal.client.scheduler.address) as other:
        gang = other.launch(exchange_for_ever)
        gang.events.get(timeout=30)
        other.close()
        with Clock(2), pytest.raises(LabClosed, match=r"call lk\.connect"):
            gang.result()
        with pytest.raises(LabClosed):
            other.launch(add)
    assert works(mortal)  # its ranks have made room


# -- clients and schedulers die

HOST = """
    from distributed import LocalCluster
    cluster = LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None)  # room for a second gang's ranks
    print(cluster.scheduler_address)
    input()
"""

CLIENT = """
    import time, torch, torch.distributed as dist
    import labkit as lk
    from labkit.cluster.gang import rank

    def exchange():
        rank.tell({{}})
        while True:
            dist.all_reduce(torch.ones(10))

    def hang():
        rank.tell({{}})
        time.sleep(1000)

    def add():
        total = torch.tensor(dist.get_rank() + 1.0)
        dist.all_reduce(total)
        return total.item()

    lab = lk.connect("{address}")
    {program}
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster in a process of its own."""
    with kernel(HOST) as host:
        yield host.hear()


@pytest.mark.parametrize("endless", ["exchange", "hang"])
def test_ranks_end_within_seconds_of_their_clients_death(address: str, endless: str) -> None:
    program = f"gang = lab.launch({endless}); gang.events.get(timeout=60); print('running'); gang.result()"
    with kernel(CLIENT.format(address=address, program=program)) as client, lk.connect(address) as lab:
        assert client.hear() == "running"
        before = pids(lab)
        client.process.kill()
        if endless == "hang":
            assert gone([*before], timeout=10)
            lab.client.wait_for_workers(2, timeout=60)  # processes that start anew take what they take
        assert works(lab)
        assert (pids(lab) == before) is (endless == "exchange")


def test_two_clients_at_once_queue_for_the_workers(address: str) -> None:
    program = "print([lab.launch(add, ranks=2).result(timeout=60) for _ in range(8)] == [[3.0, 3.0]] * 8)"
    text = CLIENT.format(address=address, program=program)
    with kernel(text) as first, kernel(text) as second:
        assert [first.hear(), second.hear()] == ["True", "True"]


def test_a_scheduler_that_dies_is_noticed() -> None:
    with kernel(HOST) as host, lk.connect(host.hear()) as lab:
        gang = lab.launch(exchange_for_ever)
        gang.events.get(timeout=60)
        host.process.kill()
        with Clock(5), pytest.raises(LabClosed, match=r"its scheduler is gone|was closed"):
            gang.result()
        with Clock(12), pytest.raises(LabClosed):
            lab.launch(add).result()
