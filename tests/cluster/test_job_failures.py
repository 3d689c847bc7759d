"""`lab.map` when something goes wrong: one sentence that names the item, and a cluster that still works."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from distributed import get_worker

from labkit.cluster import deadlines
from labkit.cluster.connect import connect
from labkit.cluster.doctor import doctor
from labkit.cluster.lab import Lab
from labkit.cluster.local import open_local
from labkit.cluster.workers import WorkerRequest
from labkit.errors import LabClosed, Stopped, TaskError, WorkerLost
from tests.cluster.kernels import gone, kernel, run
from tests.cluster.memory import MEMORY, fill, paused


def square(x: float) -> float:
    return x * x


class OwnError(Exception):
    """As learners define them."""


def test_a_failing_item_is_named_and_the_rest_is_cancelled(lab: Lab, tmp_path: Path) -> None:
    def work(x: int) -> int:
        if x == 3:
            raise OwnError("not this one")
        time.sleep(0.05)
        Path(tmp_path, str(x)).touch()
        return x

    job = lab.map(work, range(200))
    with pytest.raises(TaskError, match=r"^item 3 \(3\) failed on worker [01] with OwnError: not this one$") as caught:
        job.result()
    assert isinstance(caught.value.__cause__, OwnError)
    assert traceback_names(caught.value.__cause__) == ["work"]  # the learner's own lines only
    assert job.failed
    assert "TaskError after" in repr(job)
    time.sleep(0.5)  # what was running may end
    computed = len(list(tmp_path.iterdir()))
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) == computed < 100
    with pytest.raises(TaskError):
        job.result()  # asked again, told again
    assert lab.map(square, [4]).result() == [16]


def traceback_names(error: BaseException) -> list[str]:
    names, frame = [], error.__traceback__
    while frame is not None:
        names.append(frame.tb_frame.f_code.co_name)
        frame = frame.tb_next
    return names


def test_sys_exit_fails_the_item_and_spares_the_worker(lab: Lab) -> None:
    pids = {worker.pid for worker in lab.workers}
    with pytest.raises(TaskError, match=r"sys\.exit\(7\)"):
        lab.map(sys.exit, [7]).result()
    assert {worker.pid for worker in lab.workers} == pids


def test_a_worker_that_dies_costs_no_result(lab: Lab, tmp_path: Path) -> None:
    def once_deadly(x: int) -> int:
        time.sleep(0.02)
        if x == 10 and not Path(tmp_path, "died").exists():
            Path(tmp_path, "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    assert lab.map(once_deadly, range(40)).result(timeout=60) == list(range(40))
    assert Path(tmp_path, "died").exists()


def test_an_item_that_kills_every_worker_is_named(lab: Lab) -> None:
    def deadly(x: int) -> int:
        if x == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    begin = time.monotonic()
    with pytest.raises(WorkerLost, match=r"^item 5 \(5\) ended 4 workers"):
        lab.map(deadly, range(8)).result(timeout=60)
    assert time.monotonic() - begin < 30
    assert lab.map(square, [5]).result(timeout=60) == [25]  # the cluster is usable


def test_cancel_stops_the_job_and_nothing_else(lab: Lab) -> None:
    job, other = lab.map(time.sleep, [0.3] * 50), lab.map(square, [3])
    begin = time.monotonic()
    job.cancel()
    job.cancel()
    with pytest.raises(Stopped, match=r"cancelled after \d+ of 50 items"):
        job.result()
    assert time.monotonic() - begin < 5
    assert other.result() == [9]
    other.cancel()  # too late: harmless
    assert other.result() == [9]


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What a kernel prints whose lab loses its workers, and is then closed under a running job."""
    ended = run(
        """
        import threading, time
        import labkit as lk, labkit.cluster.deadlines as deadlines

        def told(use):
            try:
                use()
            except lk.errors.LabkitError as error:
                print(f"{type(error).__name__}: {error}")

        deadlines.NO_WORKERS = 1.0
        lab = lk.connect(workers=1)
        running = lab.map(time.sleep, [30])
        lab.cluster.scale(0)
        told(running.result)
        told(lambda: lab.map(abs, [1]))
        deadlines.NO_WORKERS = 10.0
        lab.scale(1)
        print(lab.map(abs, [-1]).result())
        running = lab.map(time.sleep, [30])
        threading.Timer(0.3, lab.close).start()
        told(lambda: running.result(timeout=20))
        for use in (lambda: lab.map(abs, [1]), lambda: lab.workers, lab.restart_workers):
            told(use)
        """
    )
    assert ended.stderr == ""
    return ended.stdout.splitlines()


def test_a_lab_whose_workers_are_gone_is_no_endless_wait(said: list[str]) -> None:
    assert said[0].startswith("WorkerLost: all workers of this lab are gone")
    assert said[1].startswith("WorkerLost: this lab has no workers")
    assert said[2] == "[1]"  # as soon as there is one again


def test_closing_the_lab_ends_its_jobs(said: list[str]) -> None:
    assert said[3].startswith("LabClosed: the lab was closed, or its scheduler lost, while the job ran")
    assert said[4:] == ["LabClosed: this lab is closed, or its scheduler is gone: call lk.connect() for a new one."] * 3


ELSEWHERE = """
    from distributed import LocalCluster
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)
    print(cluster.scheduler_address)
    input()
"""


def test_a_scheduler_that_is_gone_ends_the_wait() -> None:
    with kernel(ELSEWHERE) as other, connect(other.hear()) as guest:
        assert guest.map(square, [2]).result() == [4]
        job = guest.map(time.sleep, [60])
        begin = time.monotonic()
        other.process.kill()
        with pytest.raises(LabClosed, match="its scheduler lost"):
            job.result(timeout=20)
        with pytest.raises(LabClosed, match="its scheduler is gone"):
            guest.map(square, [2])
        job.cancel()  # harmless
    assert time.monotonic() - begin < 10


INTERRUPTED = """
    import time
    import labkit as lk
    lab = lk.connect(workers=1)
    job = lab.map(time.sleep, [2, 60])
    print("waiting", lab.workers[0].pid)
    try:
        job.result()
    except KeyboardInterrupt:
        print("interrupted", job.done, lab.map(abs, [-1]).done)
        print(lab.map(abs, [-2]).result())      # when the nap that had begun is over
    lab.close()
"""


def test_an_interrupt_cancels_the_job_and_reaches_the_cell() -> None:
    with kernel(INTERRUPTED) as notebook:
        word, worker = notebook.hear().split()
        assert word == "waiting"
        time.sleep(0.3)
        begin = time.monotonic()
        os.killpg(notebook.process.pid, signal.SIGINT)  # as Jupyter interrupts a kernel
        assert notebook.hear() == "interrupted True False"
        assert time.monotonic() - begin < 5
        assert notebook.hear() == "[2]"
        assert notebook.process.wait(30) == 0
        assert gone([int(worker)], timeout=1)


def test_a_lab_whose_workers_have_no_memory_left_is_no_endless_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "BACK_AGAIN", 2.0)
    monkeypatch.setattr(deadlines, "NO_WORKERS", 2.0)
    sentence = r"^all workers have used up their memory, .* by lab.restart_workers\(\)"

    def keep(k: int) -> None:
        if k < 2:
            fill(0.85, get_worker())
        time.sleep(1.0)

    with open_local(WorkerRequest(workers=2, memory=MEMORY)) as lab:
        job = lab.map(keep, range(20))
        with pytest.raises(WorkerLost, match=sentence):
            job.result(60)
        assert paused(lab) == 2
        with pytest.raises(WorkerLost, match=sentence):
            lab.map(square, range(4))
        assert "2 workers, of which 2 begin nothing more: their memory is used up" in repr(doctor(lab))
        lab.client.run(fill, 0.0)
        assert lab.map(square, range(4)).result(60) == [0, 1, 4, 9]
