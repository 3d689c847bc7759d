"""`lab.launch` when something goes wrong: one sentence within seconds, and a next run on the same workers."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from labkit.cluster.lab import Lab
from labkit.errors import GangError, Stopped
from tests.cluster.ranks import Clock, add, exchange_for_ever, pids, works

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
        pytest.raises(GangError, match=r"^rank 1 on worker tls://\S+ failed: ValueError: bad batch$") as caught,
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


def test_a_module_that_the_workers_lack_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without a file, for files beside the notebook travel."""
    only_here = ModuleType("only_here")
    only_here.x = 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "only_here", only_here)

    def read(value: Any) -> int:
        return int(value.x)

    with pytest.raises(GangError, match=r"cannot load read .*No module named 'only_here'.*upload_file"):
        lab.launch(read, only_here).result()
    assert works(lab)


def test_a_group_that_a_task_left_behind_is_named(lab: Lab) -> None:
    def occupy() -> None:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)

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
