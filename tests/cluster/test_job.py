"""`lab.map`: results in the order of the items, when and where they were computed, and how that looks."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from labkit.cluster.display import NotebookBar, TerminalBar
from labkit.cluster.job import Job
from labkit.cluster.lab import Lab
from labkit.text import short


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


def test_items_are_named_in_one_short_line() -> None:
    assert short(np.eye(30)) == "array([[1., 0... 0., 0., 1.]])"
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
