"""`lab.map`: results in order whatever happens to the workers, and every failure in a sentence that names the item."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labkit.cluster.connect import connect
from labkit.cluster.job import Job, short
from labkit.cluster.lab import Lab
from labkit.cluster.progress import NotebookBar, TerminalBar
from labkit.errors import LabClosed, SettingError, Stopped, TaskError, WorkerLost
from tests.cluster.kernels import gone, kernel, run


def square(x: float) -> float:
    return x * x


def test_results_come_in_the_order_of_the_items(lab: Lab) -> None:
    job = lab.map(square, (x for x in range(50)))
    assert job.result() == [x * x for x in range(50)]
    assert job.done
    assert not job.failed
    assert job.progress == (50, 50)
    assert repr(job) == "Job square: 50 items computed"


def test_map_returns_before_the_work_is_done(lab: Lab) -> None:
    begin = time.monotonic()
    job = lab.map(time.sleep, [1.0, 1.0], label="naps")
    assert time.monotonic() - begin < 0.9
    assert not job.done
    assert repr(job) == "Job naps: 0 of 2 items"
    with pytest.raises(TimeoutError, match=r"0 of 2 items after 0\.1 s"):
        job.result(timeout=0.1)
    assert job.result(timeout=30) == [None, None]  # it had gone on


def test_no_items_give_no_results(lab: Lab) -> None:
    job = lab.map(square, [])
    assert job.result() == []
    assert job.schedule.makespan == 0


def test_schedule_is_what_happened_on_the_labs_workers(lab: Lab) -> None:
    def nap(seconds: float) -> str:
        from distributed import get_worker

        time.sleep(seconds)
        return str(get_worker().name)

    job = lab.map(nap, [0.2, 0.1, 0.1, 0.05])
    schedule = job.schedule
    assert schedule.kind == "measured"
    assert schedule.workers == len(lab.workers) == 2
    lanes = [worker.name for worker in lab.workers]
    assert [lanes[lane] for lane in schedule.worker] == job.result()
    spent = np.asarray(schedule.finish) - np.asarray(schedule.start)
    assert np.all(spent >= [0.2, 0.1, 0.1, 0.05])
    assert min(schedule.start) == 0
    assert schedule.labels == ("0.2", "0.1", "0.1", "0.05")


def test_prints_arrive_with_the_workers_name(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    def tell(x: int) -> None:
        print("item", x)
        print("no newline", end="")

    lab.map(tell, range(3)).result()
    said = capsys.readouterr().out.splitlines()
    assert sorted(line.split("] ")[1] for line in said) == ["item 0", "item 1", "item 2", *["no newline"] * 3]
    assert {line.split("] ")[0] for line in said} <= {"[worker 0", "[worker 1"}


# -- failures


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
        import labkit as lk, labkit.cluster.job as job

        def told(use):
            try:
                use()
            except lk.errors.LabkitError as error:
                print(f"{type(error).__name__}: {error}")

        job._PATIENCE = 1.0
        lab = lk.connect(workers=1)
        running = lab.map(time.sleep, [30])
        lab.cluster.scale(0)
        told(running.result)
        told(lambda: lab.map(abs, [1]))
        job._PATIENCE = 10.0
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


@pytest.mark.parametrize(
    ("fn", "items", "sentence"),
    [
        (3, [1], "wants a function"),
        (abs, 5, "wants items"),
        (threading.Lock().__enter__, [1], "cannot be sent to the workers.*have to be made inside"),
        (abs, [1, threading.Lock()], r"item 1 \(<unlocked.*cannot be sent"),
    ],
)
def test_what_cannot_be_mapped_is_refused_at_once(lab: Lab, fn: Any, items: Any, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        lab.map(fn, items)


# -- what travels


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module beside the notebook, which workers that are already running cannot import."""
    file = tmp_path / "my_helpers.py"
    file.write_text("FACTOR = 2\n\ndef scaled(x):\n    return FACTOR * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    sys.modules.pop("my_helpers", None)


def test_a_function_of_the_users_own_module_travels_as_it_is_now(lab: Lab, own_module: Path) -> None:
    module = importlib.import_module("my_helpers")
    assert lab.map(module.scaled, [1, 2]).result() == [2, 4]
    own_module.write_text(own_module.read_text().replace("FACTOR = 2", "FACTOR = 30"))
    importlib.invalidate_caches()
    sys.modules.pop("my_helpers")
    module = importlib.import_module("my_helpers")
    assert lab.map(partial(module.scaled), [1, 2]).result() == [30, 60]


def test_a_module_that_the_workers_lack_is_named(lab: Lab, own_module: Path) -> None:
    def indirect(x: int) -> Any:
        import my_helpers

        return my_helpers.scaled(x)

    with pytest.raises(TaskError, match=r"no module 'my_helpers'.*upload_file\(\"my_helpers\.py\"\)"):
        lab.map(indirect, [1]).result()


class Counted:
    """An object of two megabytes that counts how often it is pickled in this process."""

    pickled = 0

    def __init__(self) -> None:
        self.nbytes = 2_000_000
        self.data = bytes(self.nbytes)

    def __reduce__(self) -> tuple[Any, ...]:
        Counted.pickled += 1
        return len, (self.data,)


def test_a_big_object_in_many_items_travels_once(lab: Lab) -> None:
    Counted.pickled = 0
    big = Counted()
    items: list[Any] = [big, (big, 1), [2, big], {"x": big}, big]
    size = big.nbytes
    assert lab.map(lambda item: item, items).result() == [size, (size, 1), [2, size], {"x": size}, size]
    # once to the scheduler, once from there to a worker; the workers pass it on among themselves
    assert Counted.pickled <= 2


def test_a_big_object_in_the_function_travels_once_and_survives_a_death(lab: Lab, tmp_path: Path) -> None:
    model = np.arange(200_000.0)

    def predict(x: int) -> float:
        if x == 7 and not Path(tmp_path, "died").exists():
            Path(tmp_path, "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return float(model[x])

    job = lab.map(predict, range(30))
    sent = lab.client.run_on_scheduler(
        lambda dask_scheduler, label: [
            len(str(ts.run_spec)) for key, ts in dask_scheduler.tasks.items() if label in str(key)
        ],
        label="predict",
    )
    assert max(sent, default=0) < 100_000  # the array is in none of the tasks
    assert job.result(timeout=60) == [float(x) for x in range(30)]


def test_heavy_items_are_warned_of(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.cluster.shipping.HEAVY", 1_000_000)
    with pytest.warns(UserWarning, match=r"the items hold 1\.53 MiB.*load the data inside") as caught:
        assert lab.map(len, [bytes(800_000), bytes(800_001)]).result() == [800_000, 800_001]
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]


# -- how it looks


def test_items_are_named_in_one_short_line() -> None:
    assert short(np.eye(30)) == "array([[1., ...0., 0., 1.]])"
    assert short({"a": 1}) == "{'a': 1}"


def test_the_bar_is_one_widget_whose_value_follows_the_job(lab: Lab) -> None:
    def tell(x: int) -> int:
        print("a < b")
        return x

    job = lab.map(tell, range(4), label="R&D")
    bundle = job._repr_mimebundle_()
    assert bundle["text/plain"] == "Job R&D: 4 items"  # the same in every run
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert isinstance(job._bar, NotebookBar)
    model = bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert job.result() == [0, 1, 2, 3]
    page = job._bar.widget.value
    assert 'role="progressbar"' in page
    assert 'aria-valuenow="4"' in page
    assert "R&amp;D" in page
    assert page.count("a &lt; b") == 4
    assert job._repr_mimebundle_()["application/vnd.jupyter.widget-view+json"]["model_id"] == model


def test_no_other_thread_writes_the_widget(lab: Lab) -> None:
    job = lab.map(square, [1, 2])
    job._repr_mimebundle_()
    bar = job._bar
    assert isinstance(bar, NotebookBar)
    before = bar.widget.value
    concluded: list[Any] = []
    thread = threading.Thread(target=lambda: concluded.extend(job.result()))
    thread.start()
    thread.join()
    assert concluded == [1, 4]
    assert bar.widget.value == before
    bar.update()
    assert "2 items computed" in bar.widget.value


def test_a_terminal_shows_a_bar_that_fills(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = lab.map(square, range(6))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    job.result()
    bars = capsys.readouterr().err.split("\r")
    assert bars[-1].rstrip("\n").removesuffix("\x1b[K") == f"square  [{'█' * TerminalBar.WIDTH}] 6 of 6"
    assert bars[-1].endswith("\n")
    job.result()
    assert isinstance(job, Job)
    assert capsys.readouterr().err == ""  # done: nothing to show again
