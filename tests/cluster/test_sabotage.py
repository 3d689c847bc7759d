"""`lab.kill` and `lab.slow`: real deaths and real slowness, of this kernel's own workers only, undone afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import labkit as lk
from labkit.cluster.lab import Lab
from labkit.cluster.local import local_cluster
from labkit.cluster.sabotage import process_of
from labkit.errors import SettingError
from tests.cluster.kernels import gone, kernel

linux = pytest.mark.skipif(
    not Path("/proc/thread-self/schedstat").exists(), reason="reads Linux's scheduler statistics"
)


@pytest.fixture(scope="module")
def mortal() -> Iterator[Lab]:
    """Two workers of this kernel's that a test may harm."""
    with local_cluster(2, threads=1, memory=2 << 30) as cluster, lk.connect(cluster) as lab:
        lab.map(abs, [1, 2]).result(timeout=60)  # which waits until they have imported torch: that slows them too
        yield lab


def slowness(seconds: float) -> float:
    """Compute for so many seconds of a core's time; how many times as long that took as it had to."""

    def share() -> tuple[float, float]:
        """Seconds that this thread has had a core, and has waited for one because of other programs."""
        had, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
        return int(had) / 1e9, int(waited) / 1e9

    begin, (had, waited) = time.perf_counter(), share()
    text = bytes(1 << 16)
    while share()[0] - had < seconds:
        hash(text + text)  # in compiled code
    end, (had_then, waited_then) = time.perf_counter(), share()
    return (end - begin) / (had_then - had + waited_then - waited)


def slow_by(lab: Lab, worker: int, factor: float) -> None:
    """Over a while, and again: on a busy machine the brake itself is late now and then, and makes up for it."""
    address = next(it.address for it in lab.workers if it.name == str(worker))
    found: list[float] = []
    while len(found) < 5 and (not found or found[-1] != pytest.approx(factor, rel=0.15)):
        found.append(lab.client.submit(slowness, 0.6, workers=[address], pure=False).result(timeout=60))
    assert found[-1] == pytest.approx(factor, rel=0.15), found


def test_a_worker_is_meant_by_number_name_address_or_row(mortal: Lab) -> None:
    for row in mortal.workers:
        assert [process_of(mortal, it) for it in (int(row.name), row.name, row.address, row)] == [row.pid] * 4
    with pytest.raises(SettingError, match=r"no worker 2 in this lab: name one of 0, 1\."):
        mortal.kill(2)


def test_workers_that_others_started_are_not_harmed(lab: Lab) -> None:
    with lk.connect(lab.client.scheduler.address, security=lab.client.security) as guest:
        for harm in (lambda: guest.kill(0), lambda: guest.slow(0, 2)):
            with pytest.raises(SettingError, match=r"not started by this kernel.*lk\.connect\(workers=2\)"):
                harm()
    assert len(lab.workers) == 2


@pytest.mark.parametrize("factor", [0.5, -1, 1000, float("nan"), "3", True])
def test_a_factor_that_is_none_is_refused(lab: Lab, factor: float) -> None:
    with pytest.raises(SettingError, match=r"factor is .*; give a number from 1 to 100"):
        lab.slow(0, factor)


@linux
def test_a_slow_worker_takes_factor_times_as_long_and_the_others_do_not(mortal: Lab) -> None:
    for factor in (2, 4):
        mortal.slow(1, factor)
        slow_by(mortal, 1, factor)
    slow_by(mortal, 0, 1)
    mortal.slow(1, 1)
    slow_by(mortal, 1, 1)


def test_a_killed_worker_comes_back_as_fast_as_ever(mortal: Lab) -> None:
    mortal.slow(0, 20)
    victim = process_of(mortal, 0)
    brake = mortal._brakes[victim]
    mortal.kill(0)
    assert gone([victim], timeout=2)
    deadline = time.monotonic() + 30
    while victim in (pids := [worker.pid for worker in mortal.workers]) or len(pids) < 2:
        assert time.monotonic() < deadline, "the worker is not back"
        time.sleep(0.05)
    assert brake._program.wait(5) == 0  # it holds nobody any more
    mortal.slow(0, 1)


def test_closing_a_lab_lets_workers_that_live_on_go_at_full_speed(mortal: Lab) -> None:
    other = lk.connect(mortal.cluster.get_client())
    other.cluster = mortal.cluster  # as of a lab that was connected by the cluster object
    pid = process_of(other, 1)
    other.slow(1, 50)
    *_, brake = (it for it in psutil.Process().children() if str(pid) in it.cmdline())
    other.close()
    assert not brake.is_running()
    assert psutil.Process(pid).status() != psutil.STATUS_STOPPED


STOPPED = """
    import labkit as lk
    lab = lk.connect(workers=1)
    worker = lab.workers[0].pid
    lab.slow(0, 100)
    (brake,) = lab._brakes.values()
    print(worker, brake._program.pid)
    input()
"""


def test_a_kernel_killed_while_its_worker_stands_still_leaves_nobody_behind() -> None:
    with kernel(STOPPED) as notebook:
        worker, brake = map(int, notebook.hear().split())
        deadline = time.monotonic() + 5
        while psutil.Process(worker).status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline, "the worker is never stopped"
        os.kill(notebook.process.pid, 9)
        assert gone([worker, brake], timeout=20)
