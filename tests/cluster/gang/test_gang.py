"""`lab.launch`: ranks that start together, work as torch's tutorials have it, and leave nothing behind."""

from __future__ import annotations

import gc
import os
import random
import statistics
import threading
import time
from random import Random
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from dask.sizeof import sizeof
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from labkit.cluster.gang import rank
from labkit.cluster.gang.group import host_of
from labkit.cluster.lab import Lab
from labkit.errors import GangError, SettingError
from tests.cluster.ranks import add


def train(rounds: int = 3) -> list[float]:
    """Data parallel as the tutorial writes it."""
    torch.manual_seed(dist.get_rank())
    model = DistributedDataParallel(nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer: list[Any] = [model]
    trainer.append(trainer)  # a cycle, as between a trainer and its callbacks
    for _ in range(rounds):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    return [number for parameter in model.parameters() for number in parameter.detach().flatten().tolist()]


def word() -> dict[str, Any]:
    """Wait for the signal "word"."""
    deadline = time.monotonic() + 20
    while "word" not in rank.signals():
        if time.monotonic() > deadline:
            raise TimeoutError("no word came")
        time.sleep(0.001)
    return dict(rank.signals())


def belongings() -> dict[str, Any]:
    """What a worker process has, which must not grow from run to run."""
    return {
        "sockets and files": len(psutil.Process().net_connections()),
        "threads": psutil.Process().num_threads(),
        "group": dist.is_initialized(),
        "environment": dict(os.environ),
    }


def settled(lab: Lab) -> dict[str, dict[str, Any]]:
    """The workers' belongings once they do not change any more: gloo's threads take a moment to end."""
    before = None
    while before != (now := lab.client.run(belongings)):
        before = now
        time.sleep(0.2)
    return dict(now)


# -- what a function sees


def test_a_function_runs_as_ranks_of_one_group(lab: Lab) -> None:
    assert lab.launch(add, 0.5).result() == [4.0, 4.0]
    assert lab.launch(add, x=0).result() == [3.0, 3.0]
    assert lab.launch(add, 0, ranks=1).result() == [1.0]


def test_ddp_keeps_the_ranks_equal(lab: Lab) -> None:
    first, second = lab.launch(train).result()
    assert first == second


def test_ranks_know_themselves_as_torchrun_tells_them(lab: Lab) -> None:
    def who() -> tuple[int, int, list[str]]:
        return dist.get_rank(), dist.get_world_size(), [os.environ[it] for it in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]

    assert lab.launch(who).result() == [(0, 2, ["0", "2", "0"]), (1, 2, ["1", "2", "1"])]


def test_results_are_whatever_can_be_pickled(lab: Lab) -> None:
    def state() -> dict[str, torch.Tensor]:
        return nn.Linear(2, 2).state_dict()

    results = lab.launch(state).result()
    assert [set(result) for result in results] == [{"weight", "bias"}] * 2


def test_all_listeners_of_a_rank_are_on_its_workers_own_address(lab: Lab) -> None:
    def addresses() -> tuple[set[str], str]:
        dist.new_group([0, 1])  # a group of the user's own opens a listener too
        connections = psutil.Process().net_connections("tcp")
        listening = {it.laddr.ip for it in connections if it.status == psutil.CONN_LISTEN}
        return listening, os.environ["GLOO_SOCKET_IFNAME"]

    gang = lab.launch(addresses)
    for (listening, interface), worker in zip(gang.result(), gang.workers, strict=True):
        host = host_of(worker)
        assert listening == {host}
        assert host in {address.address for address in psutil.net_if_addrs()[interface]}


def test_what_ranks_finish_with_reaches_the_others_although_they_leave_at_once(lab: Lab) -> None:
    def last(turn: int) -> float:
        x = torch.full((50_000,), float(dist.get_rank()))
        if turn % 3 == 0:
            dist.broadcast(x, src=1)
        elif turn % 3 == 1:
            dist.reduce(x, dst=0)
        elif dist.get_rank() == 0:
            dist.send(x + 1, dst=1)
        else:
            dist.recv(x, src=0)
        return x.sum().item() / len(x)

    for turn in range(9):
        assert lab.launch(last, turn).result()[1 if turn % 3 == 2 else 0] == 1.0


# -- what it leaves behind


def test_twenty_runs_in_a_row_leave_sockets_threads_and_environment_as_they_were(lab: Lab) -> None:
    for _ in range(3):
        lab.launch(train, 1).result()
    before = settled(lab)
    lab.client.run(gc.disable)  # what a run leaves must not wait for the collector to come by
    try:
        for _ in range(10):
            assert lab.launch(add, 0).result() == [3.0, 3.0]
            lab.launch(train, 1).result()
        after = settled(lab)
    finally:
        lab.client.run(gc.enable)
    for worker, had in before.items():
        has = after[worker]
        assert has["sockets and files"] <= had["sockets and files"] + 2  # Dask itself keeps a few connections
        assert has["threads"] <= had["threads"] + 1
        assert has["environment"] == had["environment"]
        assert not has["group"]


def test_a_function_may_change_the_environment_and_end_its_group(lab: Lab) -> None:
    def tutorial() -> int:
        os.environ["MASTER_PORT"] = "29500"
        dist.barrier()
        dist.destroy_process_group()
        return int(os.environ["RANK"])

    assert lab.launch(tutorial).result() == [0, 1]
    assert not any("MASTER_PORT" in it["environment"] for it in lab.client.run(belongings).values())


def test_a_group_that_a_global_variable_keeps_alive_does_not_disturb_the_next_run(lab: Lab) -> None:
    def keep() -> None:
        torch.labkit_kept = DistributedDataParallel(nn.Linear(2, 2))  # type: ignore[attr-defined]

    try:
        lab.launch(keep).result()
        assert lab.launch(add, 0).result() == [3.0, 3.0]
    finally:
        lab.client.run(lambda: delattr(torch, "labkit_kept"))


def test_a_warm_launch_takes_milliseconds(lab: Lab) -> None:
    lab.launch(add, 0).result()
    seconds = []
    for _ in range(15):
        begin = time.perf_counter()
        lab.launch(add, 0).result()
        seconds.append(time.perf_counter() - begin)
    assert statistics.median(seconds) < 0.25  # 0.03 on an idle machine; this one may be busy


# -- messages


def draws() -> list[float]:
    """Random numbers of half a second, while messages keep Dask's event loop guessing at sizes."""
    random.seed(0)
    drawn = []
    for _ in range(50):
        rank.tell({str(k): k for k in range(20)})
        sizeof(list(range(20)))
        time.sleep(0.01)
        drawn.append(random.random())
    return drawn


def test_random_numbers_of_a_rank_follow_from_its_seed(lab: Lab) -> None:
    """Dask's `sizeof` draws with the same module, whenever its event loop has something to measure."""
    expected = Random(0)
    numbers = [expected.random() for _ in range(50)]
    assert lab.launch(draws).result(timeout=30) == [numbers, numbers]


def test_every_message_has_arrived_when_the_result_is_there(lab: Lab) -> None:
    def count() -> None:
        for number in range(500):
            rank.tell({"number": number})

    gang = lab.launch(count)
    gang.result()
    messages = gang.events.drain()
    for who in (0, 1):
        assert [it["number"] for it in messages if it["rank"] == who] == list(range(500))
    assert gang.events.drain() == []


def test_messages_arrive_while_the_ranks_still_run(lab: Lab) -> None:
    def speak_and_listen() -> str:
        rank.tell({"ready": True})
        return str(word()["word"])

    gang = lab.launch(speak_and_listen)
    assert {gang.events.get(timeout=30)["rank"], gang.events.get(timeout=30)["rank"]} == {0, 1}
    assert gang.started and not gang.done
    assert "running" in repr(gang)
    gang.signal({"word": "go"})
    assert gang.result() == ["go", "go"]


def test_a_signal_given_before_the_start_is_not_lost(lab: Lab) -> None:
    gang = lab.launch(word)
    gang.signal({"first": 1})
    gang.signal({"word": "go"})
    assert gang.result() == [{"first": 1, "word": "go"}] * 2


def test_messages_are_plain_data(lab: Lab) -> None:
    def tell_too_much() -> None:
        rank.tell({"model": nn.Linear(1, 1)})

    with pytest.raises(GangError, match=r"rank \d on worker tls\S+ failed: .*numbers, strings, bytes, lists and dicts"):
        lab.launch(tell_too_much).result()


@pytest.mark.parametrize("call", [lambda: rank.tell({}), rank.signals])
def test_outside_a_rank_there_is_nobody_to_talk_to(call: Any) -> None:
    with pytest.raises(GangError, match=r"only inside a function that lab\.launch runs"):
        call()


def test_prints_of_the_ranks_are_shown_with_their_rank(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    def hello() -> None:
        print("hello")
        print("from", dist.get_rank(), end="")

    lab.launch(hello).result()
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "[rank 0] from 0", "[rank 0] hello", "[rank 1] from 1", "[rank 1] hello",
    ]  # fmt: skip


# -- arguments


class Counted:
    """Counts how often it is pickled."""

    pickled = 0

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __getstate__(self) -> dict[str, Any]:
        Counted.pickled += 1
        return self.__dict__


def test_a_large_argument_travels_once_and_each_rank_gets_its_own(lab: Lab) -> None:
    def use(it: Counted) -> float:
        it.array[0] += dist.get_rank()
        return float(it.array.sum())

    before = Counted.pickled
    assert lab.launch(use, Counted(np.ones(2_000_000))).result() == [2_000_000, 2_000_001]
    assert Counted.pickled == before + 1


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"ranks": 3}, GangError, r"3 ranks need 3 workers, but the lab has 2: .*lk\.connect\(workers=3\)"),
        ({"ranks": 0}, SettingError, "ranks is 0"),
        ({"ranks": -1}, SettingError, "ranks is -1"),
        ({"ranks": 2.0}, SettingError, r"ranks is 2\.0"),
        ({"timeout": 0}, SettingError, "timeout is 0"),
        ({"timeout": float("nan")}, SettingError, "timeout is nan"),
        ({"timeout": float("inf")}, SettingError, "timeout is inf"),
        ({"x": threading.Lock()}, SettingError, "add cannot be sent to the workers"),
    ],
)
def test_a_launch_that_cannot_work_says_so_at_once(
    lab: Lab, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        lab.launch(add, **settings)


def test_what_is_launched_must_be_a_function(lab: Lab) -> None:
    with pytest.raises(SettingError, match="3 is not a function"):
        lab.launch(3)  # type: ignore[arg-type]
