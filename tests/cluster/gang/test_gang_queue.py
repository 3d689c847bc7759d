"""Several gangs, and gangs beside maps, on the same workers."""

from __future__ import annotations

import os
import signal
import time

import pytest
from distributed import Client, Status

from labkit.cluster.channels import Inbox, Note
from labkit.cluster.gang.launch import Gang
from labkit.cluster.gang.queue_access import ask
from labkit.cluster.lab import Lab
from labkit.cluster.local import open_local
from labkit.cluster.workers import WorkerRequest
from labkit.errors import GangError, WorkerLost
from tests.cluster.memory import MEMORY, fill, paused
from tests.cluster.ranks import add, nap, until


def overlap(first: list[tuple[float, float]], second: list[tuple[float, float]]) -> bool:
    return max(first[0][0], second[0][0]) < min(first[0][1], second[0][1])


def test_gangs_that_need_the_same_workers_queue(lab: Lab) -> None:
    gangs: list[Gang] = [lab.launch(nap, 0.2) for _ in range(3)]
    times = [gang.result() for gang in gangs]
    assert not any(overlap(times[i], times[j]) for i, j in ((0, 1), (1, 2), (0, 2)))
    assert [min(it)[0] for it in times] == sorted(min(it)[0] for it in times)


def test_gangs_that_find_room_run_side_by_side(lab: Lab) -> None:
    gangs = [lab.launch(nap, 0.5, ranks=1) for _ in range(2)]
    times = [gang.result() for gang in gangs]
    assert overlap(*times)
    assert gangs[0].workers != gangs[1].workers


def test_tasks_of_a_map_only_delay_a_launch(lab: Lab) -> None:
    job = lab.map(time.sleep, [0.2] * 8)
    assert lab.launch(add, 0).result() == [3.0, 3.0]
    assert job.result() == [None] * 8


def test_a_launch_that_does_not_find_its_workers_in_time_names_the_busy_one(lab: Lab) -> None:
    job = lab.map(time.sleep, [2.5])
    time.sleep(0.3)
    with pytest.raises(
        GangError, match=r"1 of 2 ranks started within 0\.5 s: .* worker tls://\S+ is busy with 1 other"
    ):
        lab.launch(add, 0, timeout=0.5).result()
    assert job.result() == [None]  # its worker was not restarted
    assert lab.launch(add, 0).result() == [3.0, 3.0]


def test_a_launch_behind_another_says_who_holds_the_workers(lab: Lab) -> None:
    first = lab.launch(nap, 1.5)
    sentence = r"0 of 2 ranks started within 0\.3 s, because .* held by Gang: nap as 2 ranks \(since "
    with pytest.raises(GangError, match=sentence):
        lab.launch(add, 0, timeout=0.3).result()
    first.result()


def test_a_launch_hears_for_whom_it_waits_though_its_word_that_it_listens_is_still_on_the_way(lab: Lab) -> None:
    first, notes = lab.launch(nap, 1.5), list[Note]()
    while not first.started:
        time.sleep(0.01)
    with Client(lab.cluster) as client:
        send = client._send_to_scheduler
        client._send_to_scheduler = lambda it: None if it["op"] == "subscribe-topic" else send(it)
        inbox = Inbox(client, notes.append)
        entering = {"client": client.id, "ranks": 2, "timeout": 0.5, "title": "another"}
        assert client.sync(ask, client.scheduler, "enter", inbox.address, **entering)["refused"] == "busy"
        while not notes:
            time.sleep(0.01)
    assert [title for title, _ in notes[0]["holders"]] == ["Gang: nap as 2 ranks"]
    first.result()


def test_a_launch_can_be_stopped_while_it_waits_for_its_turn(lab: Lab) -> None:
    first, second = lab.launch(nap, 1.0), lab.launch(add, 0)
    second.stop()
    assert second.wait(0.5)
    assert not first.done
    first.result()
    assert lab.launch(add, 0).result() == [3.0, 3.0]


def test_a_rank_that_dask_starts_a_second_time_is_refused(lab: Lab) -> None:
    gang = lab.launch(nap, 0.5)
    while not gang.started:
        time.sleep(0.01)
    call = lab.client.scheduler.labkit_gang_arrive
    assert lab.client.sync(call, gang=gang._address, rank=1, port=None)["refused"] == "repeated"
    gang.result()
    assert lab.client.sync(call, gang=gang._address, rank=1, port=None)["refused"] == "left"


def test_a_launch_says_that_workers_are_missing_or_full_and_begins_when_they_have_let_go_of_their_memory() -> None:
    with open_local(WorkerRequest(workers=2, memory=MEMORY)) as lab:
        lab.launch(add, 0).result()
        first = lab.workers[0]
        lab.client.run(fill, 0.85, workers=[first.address])
        until(lambda: paused(lab) == 1)
        gang, behind = lab.launch(add, 0), lab.launch(add, 0, ranks=1)
        until(lambda: gang.waits and behind.waits)
        assert gang.waits == "only 1 of 2 workers is there, and worker 0 has used up its memory"
        assert "for which Gang: add as 2 ranks waits before this one" in behind.waits
        assert repr(gang) == f"Gang: add as 2 ranks, {gang.waits}"
        with pytest.raises(GangError, match=r"within 0\.3 s, because only 1 of 2 .* its memory: launch with fewer"):
            lab.launch(add, 0, timeout=0.3).result()
        lab.client.run(fill, 0.0, workers=[first.address])
        assert gang.result(60) == [3.0, 3.0] and behind.result(60) == [1.0]


def test_a_launch_right_after_a_workers_death_waits_for_it_to_be_back() -> None:
    with open_local(WorkerRequest(workers=2)) as lab:
        for _ in range(3):
            lab.kill(0)
            assert lab.launch(add, 0).result(60) == [3.0, 3.0]
        lab.kill(0), lab.kill(1)
        assert lab.launch(add, 0, ranks=2).result(60) == [3.0, 3.0]
        with pytest.raises(GangError, match="3 ranks need 3 workers, but the lab has 2"):
            lab.launch(add, 0, ranks=3)
        gang = lab.launch(nap, 60.0)
        until(lambda: gang.started)
        lab.kill(0)
        with pytest.raises(WorkerLost):
            gang.result(60)
        lab.scale(1)  # nobody waits any more for the one that died
        assert lab.launch(add, 0).result(60) == [1.0]


def test_a_gang_whose_worker_dies_before_it_has_heard_of_it_gets_another() -> None:
    """As the queue's turn is on its way to `enter`, in the same moment."""
    with open_local(WorkerRequest(workers=2)) as lab:
        lab.launch(add, 0).result()
        scheduler = lab.cluster.scheduler
        queue = scheduler.plugins["labkit-gang-queue"]
        pids = {worker.address: worker.pid for worker in lab.workers}
        plain, lost = queue._admit_those_in_front, []

        def and_lose_one() -> None:
            plain()
            if not lost and (entry := next(iter(queue.entries.values()), None)) and entry.workers:
                lost.append(entry.workers[0])
                os.kill(pids[lost[0]], signal.SIGKILL)  # and the scheduler sees it now:
                scheduler.workers[lost[0]].status = Status.closing
                queue.remove_worker(scheduler, lost[0], stimulus_id="test")

        queue._admit_those_in_front = and_lose_one
        assert lab.launch(add, 0).result(60) == [3.0, 3.0]
        assert lost
        until(lambda: not queue.entries)
