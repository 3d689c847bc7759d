"""`lab.launch` when something goes wrong: one sentence within seconds, and a next run on the same workers."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import distributed
import pytest
import torch
import torch.distributed as dist

import labkit as lk
from labkit.cluster import rank
from labkit.cluster.lab import Lab
from labkit.errors import GangError, LabClosed, Stopped, WorkerLost
from tests.cluster.kernels import kernel


def add() -> float:
    total = torch.tensor(dist.get_rank() + 1.0)
    dist.all_reduce(total)
    return total.item()


def exchange_for_ever() -> None:
    rank.tell({"pid": os.getpid()})
    while True:
        dist.all_reduce(torch.ones(1000))


def works(lab: Lab) -> bool:
    return lab.launch(add, ranks=2).result(timeout=60) == [3.0, 3.0]


def pids(lab: Lab) -> set[int]:
    return {worker.pid for worker in lab.workers}


class Clock:
    """`with Clock(3):` fails when its block takes longer than 3 seconds."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __enter__(self) -> None:
        self.begin = time.monotonic()

    def __exit__(self, error: Any, *_: object) -> None:
        took = time.monotonic() - self.begin
        assert error is not None or took < self.limit, f"took {took:.1f} s"


# -- one rank fails


class Twisted(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def fail_alone(error: BaseException) -> None:
    """Rank 1 fails while the other is in a collective."""
    if dist.get_rank() == 1:
        dist.all_reduce(torch.ones(1000))
        raise error
    exchange_for_ever()


def test_the_failing_ranks_own_exception_is_raised_with_its_own_traceback(lab: Lab) -> None:
    before = pids(lab)
    with (
        Clock(5),
        pytest.raises(GangError, match=r"^rank 1 on worker tcp://\S+ failed: ValueError: bad batch$") as caught,
    ):
        lab.launch(fail_alone, ValueError("bad batch")).result()
    assert isinstance(caught.value.__cause__, ValueError)
    shown = "".join(traceback.format_exception(caught.value.__cause__))
    assert "in fail_alone" in shown and "raise error" in shown
    assert "rank.py" not in shown  # it begins at the learner's function
    assert works(lab)
    assert pids(lab) == before  # nothing had to be restarted


@pytest.mark.parametrize(
    ("error", "words"),
    [(Twisted("twi", "sted"), "Twisted: twisted"), (SystemExit(3), "SystemExit: 3"), (KeyboardInterrupt(), "Keyboard")],
)
def test_exceptions_that_do_not_travel_are_reported_all_the_same(lab: Lab, error: BaseException, words: str) -> None:
    def fail(kind: str) -> None:
        raise {"Twisted": Twisted("twi", "sted"), "SystemExit": SystemExit(3)}.get(kind, KeyboardInterrupt())

    with pytest.raises(GangError, match=f"failed: .*{words}") as caught:
        lab.launch(fail, type(error).__name__).result()
    assert words in "".join(traceback.format_exception(caught.value))
    assert works(lab)


def test_a_result_that_cannot_be_sent_is_named(lab: Lab) -> None:
    with pytest.raises(
        GangError, match=r"rank \d on worker \S+ returned something that cannot be sent .*lock.*state_dict"
    ):
        lab.launch(threading.Lock).result()
    assert works(lab)


def test_a_rank_that_runs_out_of_batches_ends_the_others_in_one_sentence(lab: Lab) -> None:
    def uneven() -> None:
        for _ in range(3 + 2 * dist.get_rank()):
            dist.all_reduce(torch.ones(10))

    with Clock(5), pytest.raises(GangError, match=r"rank 1 was still in a collective when rank 0 had already returned"):
        lab.launch(uneven).result()
    assert works(lab)


def test_setting_up_the_group_again_is_answered_with_what_to_remove(lab: Lab) -> None:
    def tutorial() -> None:
        dist.init_process_group("gloo")

    with pytest.raises(GangError, match=r"tutorial calls init_process_group: remove that call"):
        lab.launch(tutorial).result()
    assert works(lab)


def test_a_module_that_the_workers_lack_is_named(lab: Lab, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here  # type: ignore[import-not-found]

    def read(value: Any) -> int:
        return int(value.x)

    with pytest.raises(GangError, match=r"cannot load read .*No module named 'only_here'.*upload_file"):
        lab.launch(read, only_here).result()
    assert works(lab)


def test_a_group_that_a_task_left_behind_is_named(lab: Lab) -> None:
    def occupy() -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    worker = lab.workers[0].address
    lab.client.submit(occupy, workers=[worker], pure=False).result()
    try:
        with pytest.raises(GangError, match=rf"{worker} could not start: .*a process group that some task left behind"):
            lab.launch(add).result()
    finally:
        lab.client.submit(dist.destroy_process_group, workers=[worker], pure=False).result()
    assert works(lab)


def test_a_collective_that_not_all_join_ends_when_its_time_is_up(lab: Lab) -> None:
    def desert() -> None:
        if dist.get_rank() == 0:
            dist.barrier()
        else:
            time.sleep(2)

    with Clock(8), pytest.raises(GangError, match=r"rank 0 waited 1 s in a collective that not all ranks joined"):
        lab.launch(desert, timeout=1).result()
    assert works(lab)


# -- stop


def compute_for_ever() -> None:
    while True:
        sum(range(1000))


def wait_for_each_other() -> None:
    dist.recv(torch.ones(1), src=1 - dist.get_rank())


@pytest.mark.parametrize("endless", [compute_for_ever, wait_for_each_other, exchange_for_ever])
def test_stop_ends_what_ranks_do_without_restarting_their_workers(lab: Lab, endless: Any) -> None:
    before = pids(lab)
    gang = lab.launch(endless)
    while not gang.started:
        time.sleep(0.01)
    time.sleep(0.1)
    gang.stop()
    with Clock(5), pytest.raises(Stopped, match=f"{endless.__name__} was stopped"):
        gang.result()
    assert works(lab)
    assert pids(lab) == before


def test_result_may_be_asked_for_with_a_limit_and_then_again(lab: Lab) -> None:
    gang = lab.launch(time.sleep, 0.5)
    with pytest.raises(TimeoutError, match=r"sleep still runs after 0\.1 s"):
        gang.result(timeout=0.1)
    assert gang.result() == gang.result() == [None, None]


def test_ctrl_c_stops_the_ranks(lab: Lab) -> None:
    gang = lab.launch(exchange_for_ever)
    gang.events.get(timeout=30)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with Clock(3), pytest.raises(KeyboardInterrupt):
        gang.result()
    assert gang.done
    assert works(lab)


# -- workers die


@pytest.fixture(scope="module")
def mortal() -> Iterator[Lab]:
    """A cluster whose workers may be killed."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        lk.connect(cluster) as lab,
    ):
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
    from labkit.cluster import rank

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


@pytest.mark.parametrize(("endless", "limit"), [("exchange", 6), ("hang", 15)])
def test_ranks_end_within_seconds_of_their_clients_death(address: str, endless: str, limit: float) -> None:
    program = f"gang = lab.launch({endless}); gang.events.get(timeout=60); print('running'); gang.result()"
    with kernel(CLIENT.format(address=address, program=program)) as client, lk.connect(address) as lab:
        assert client.hear() == "running"
        client.process.kill()
        with Clock(limit):
            assert works(lab)


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
