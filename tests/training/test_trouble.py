"""Buttons below a live run: a worker is killed and the run goes on, or slowed down and as fast as before again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

import labkit as lk
from labkit.algorithms import AllReduce
from labkit.cluster.lab import Lab
from labkit.cluster.local import open_local
from labkit.cluster.workers import WorkerRequest
from labkit.training.live import LiveView
from labkit.training.trouble import SLOWER

pytestmark = pytest.mark.paired


def started(lab: Lab | None, rounds: int):
    kwargs = {"peers": 2, "rounds": rounds}
    return lk.train(lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), AllReduce(), on=lab, **kwargs)


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def mortal() -> Iterator[Lab]:
    """A lab of this kernel whose workers may be killed; the session's has many tests yet to serve."""
    with open_local(WorkerRequest(workers=2)) as lab:
        yield lab


def test_a_worker_that_is_killed_by_its_button_costs_the_run_nothing(mortal: Lab) -> None:
    lab = mortal
    whole = started(lab, 2000).result(120)
    run = started(lab, 2000)
    view = LiveView(run)
    assert view.trouble
    wait_for(lambda: run.history.rows)
    view.trouble.worker.value = view.trouble.worker.options[1]
    view.trouble.slow.value = True
    view.trouble.kill.click()
    assert "was killed" in view.trouble.said.value
    assert not view.trouble.slow.value  # the one that comes back is not slow
    history = run.result(120)
    assert any("lost" in str(it) or "died" in str(it) for it in history.events), history.events
    for one, other in zip(history.models[0].parameters(), whole.models[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert set(view.trouble.worker.options) == {str(it.name) for it in lab.workers}
    view.refresh()
    assert view.trouble.layout.display == "none"


def test_a_run_right_after_all_workers_have_died_has_a_peer_for_each_of_them(mortal: Lab) -> None:
    mortal.kill(0), mortal.kill(1)
    run = lk.train(lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), AllReduce(), rounds=3, on=mortal)
    assert "2 peers" in repr(run.result(120))


def test_a_slowed_worker_is_as_fast_as_before_when_its_button_is_pressed_again(lab: Lab) -> None:
    run = started(lab, 1_000_000)
    trouble = LiveView(run).trouble
    assert trouble
    try:
        trouble.slow.value = True
        slowed = lab._brakes[lab.workers[0].pid]
        assert float(slowed._program.args[-1]) == SLOWER
        trouble.worker.value = trouble.worker.options[1]
        assert not trouble.slow.value and lab.workers[1].pid not in lab._brakes
        trouble.worker.value = trouble.worker.options[0]
        assert trouble.slow.value
        trouble.slow.value = False
        assert lab.workers[0].pid not in lab._brakes and "as fast as before" in trouble.said.value
    finally:
        run.stop()
        run.result(60)


def test_where_no_worker_comes_back_there_are_no_such_buttons() -> None:
    run = started(None, 1)
    assert LiveView(run).trouble is None
    run.result(60)
