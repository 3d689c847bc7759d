"""Many runs, and in each of them a worker is killed at a random moment: nothing is lost, and nothing is left."""

from __future__ import annotations

import random
import threading
import time

import psutil
import pytest

from labkit.algorithms import SCAFFOLD, AllReduce, DiLoCo, LocalSGD
from tests.engines.mortals import ROUNDS, heard, kill, mortal, reach, same, start, whole

pytestmark = pytest.mark.alone

ALGORITHMS = (AllReduce(), LocalSGD(2), DiLoCo(every=2), SCAFFOLD(every=2))


def left(lab) -> tuple[int, list[int], list[str]]:
    """How many processes there are, on how many ports each worker listens, and the threads of runs that go on here."""
    processes = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    doors = [
        sum(each.status == psutil.CONN_LISTEN for each in psutil.Process(worker.pid).net_connections())
        for worker in lab.workers
    ]
    return len(processes), doors, [thread.name for thread in threading.enumerate() if "labkit-run" in thread.name]


@pytest.mark.slow
@pytest.mark.parametrize("runs", [10, pytest.param(30, marks=pytest.mark.soak)])
def test_a_random_kill_in_every_run_loses_nothing(runs):
    chance = random.Random(0)
    with mortal() as lab:
        on = heard(lab, checkpoint_every=25)
        undisturbed = [start(on, algorithm).result(120) for algorithm in ALGORITHMS]
        time.sleep(1)  # a group's connections linger for a moment
        before, disturbed = left(lab), 0
        for number in range(runs):
            run = start(on, ALGORITHMS[number % len(ALGORITHMS)])
            reach(run, chance.randrange(ROUNDS - 20))  # also 0: while its ranks start
            kill(lab, chance.randrange(2))
            history = run.result(120)
            assert same(history, undisturbed[number % len(ALGORITHMS)]), (number, history.events)
            disturbed += len(history.events) > 0
            whole(lab)
        limit = time.monotonic() + 10
        while left(lab) != before and time.monotonic() < limit:
            time.sleep(0.1)
        assert left(lab) == before
        assert disturbed > runs * 2 / 3, "most runs were over before their worker was killed"
