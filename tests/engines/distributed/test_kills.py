"""Many runs, and in each of them a worker is killed at a random moment: nothing is lost, and nothing is left."""

from __future__ import annotations

import random
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from labkit.algorithms import SCAFFOLD, AllReduce, DiLoCo, LocalSGD
from tests.engines.mortals import ROUNDS, heard, kill, mortal, reach, same, start, whole

pytestmark = pytest.mark.alone

ALGORITHMS = (AllReduce(), LocalSGD(2), DiLoCo(every=2), SCAFFOLD(every=2))


def doors(pid: int) -> int:
    """On how many ports a process listens."""
    return sum(each.status == psutil.CONN_LISTEN for each in psutil.Process(pid).net_connections())


def left(lab) -> dict[str, Any]:
    """Processes, ports of the workers, threads of this process, and files in memory that the processes share."""
    me = psutil.Process()
    processes = [child for child in me.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    pids = {str(child.pid) for child in processes}
    return {
        "processes": len(processes),
        "ports": [doors(worker.pid) for worker in lab.workers],
        "threads": sorted(re.sub(r"[\d-]+", "", it.name) for it in threading.enumerate()),
        "shared": [
            it.name
            for it in Path("/dev/shm").iterdir()
            if it.name.startswith("torch_") and it.name.split("_")[1] in pids
        ],
    }


def forms(lab, door: int) -> None:
    """Wait until the first worker listens once more: the ranks are about to meet."""
    first, limit = lab.workers[0].pid, time.monotonic() + 10
    while doors(first) <= door and time.monotonic() < limit:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("runs", [10, pytest.param(None, marks=pytest.mark.soak)])
@pytest.mark.timeout(0)  # each run has its own
def test_a_random_kill_in_every_run_loses_nothing_and_leaves_nothing(runs, request, tmp_path, monkeypatch):
    """Every fifth at the moment when the ranks' process group is made."""
    runs = runs or request.config.getoption("--kills")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # look again
    chance = random.Random(0)
    with mortal() as lab:
        on = heard(lab, checkpoint_every=25)
        undisturbed = [start(on, algorithm).result(120) for algorithm in ALGORITHMS]
        time.sleep(1)  # a group's connections linger for a moment
        before, opened, disturbed = left(lab), psutil.Process().num_fds(), 0
        for number in range(runs):
            run = start(on, ALGORITHMS[number % len(ALGORITHMS)])
            if number % 5 == 4:
                forms(lab, before["ports"][0])
            else:
                reach(run, chance.randrange(ROUNDS - 20))  # also 0: while its ranks start
            kill(lab, chance.randrange(2))
            history = run.result(120)
            assert same(history, undisturbed[number % len(ALGORITHMS)]), (number, history.events)
            disturbed += len(history.events) > 0
            whole(lab)
        most = opened + 8  # a forked worker takes a few more than a spawned one
        limit = time.monotonic() + 10
        while (left(lab) != before or psutil.Process().num_fds() > most) and time.monotonic() < limit:
            time.sleep(0.1)
        assert left(lab) == before
        assert psutil.Process().num_fds() <= most
        assert disturbed > runs / 2, "most runs were over before their worker was killed"
    # the template's socket, where this test was the first to need it, goes with the kernel
    left_there = [it for it in tmp_path.rglob("*") if not it.is_dir() and not it.name.startswith("listener-")]
    assert [it for it in left_there if it.suffix != ".lock"] == []
