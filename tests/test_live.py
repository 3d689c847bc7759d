"""The live view of a Run: traits follow the run, and its buttons steer it, without a browser."""

from __future__ import annotations

import asyncio
import time
from base64 import b64decode
from functools import partial
from itertools import pairwise

import pytest
import torch

import labkit as lk
from labkit.live import LiveView
from tests.engines.experiments import mlp


@pytest.fixture
def run():
    run = lk.train(mlp, lk.data.load("digits"), peers=2, rounds=1_000_000)
    yield run
    run.stop()
    run.result(timeout=10)


async def until(condition, limit=5.0):
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "nothing changed in the view"
        await asyncio.sleep(0.02)


def test_picture_and_progress_follow_the_run_while_the_kernel_is_free(run):
    async def watch():
        view = run._views[0]
        first, bar = view.image.value, view.bar.value
        await until(lambda: view.image.value != first and view.bar.value > bar)
        assert "running" in view.status.value and "loss" in view.status.value

    async def cell():
        run._repr_mimebundle_()  # what a cell's last line does
        await watch()

    asyncio.run(cell())


def test_stop_button_ends_the_run_and_says_so(run):
    async def cell():
        run._repr_mimebundle_()
        view = run._views[0]
        await until(lambda: run.history.rows)
        view.stop.click()
        await until(lambda: "stopped" in view.status.value)
        assert view.stop.disabled and view.pause.disabled

    asyncio.run(cell())
    assert run.result(timeout=10).stopped


def test_pause_button_turns_into_resume_and_back(run):
    async def cell():
        run._repr_mimebundle_()
        view = run._views[0]
        view.pause.click()
        await until(lambda: view.pause.description == "Resume")
        assert run.state == "paused"
        view.pause.click()
        await until(lambda: view.pause.description == "Pause")
        assert run.state == "running"

    asyncio.run(cell())


def test_a_cell_that_waits_for_the_result_keeps_the_picture_live():
    """No event loop turns while result() blocks, so it redraws by itself."""
    run = lk.train(mlp, lk.data.load("digits"), peers=2, rounds=60)
    run._repr_mimebundle_()
    run.result(timeout=30)
    view = run._views[0]
    assert view.bar.value == 60 and "finished" in view.status.value


def test_a_failed_run_shows_its_one_sentence():
    run = lk.train(mlp, lk.data.load("digits"), peers=2, optimizer=partial(torch.optim.SGD, lr=1e30))
    run._repr_mimebundle_()
    with pytest.raises(lk.errors.DivergenceError):
        run.result(timeout=30)
    assert "learning rate" in run._views[0].status.value


def test_the_bundle_holds_view_still_picture_and_words_that_do_not_change(run):
    bundle = run._repr_mimebundle_()
    assert bundle["text/plain"] == "Run: AllReduce, 2 peers, 1000000 rounds"
    assert b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_watching_takes_a_small_share_of_the_time(run):
    """Redraws are spaced by a multiple of what they cost."""

    async def cell():
        run._repr_mimebundle_()
        view, drawn = run._views[0], []
        view.image.observe(lambda change: drawn.append(time.monotonic()), "value")
        await until(lambda: drawn)  # the first picture costs an import, and on a busy machine seconds
        drawn.clear()
        await asyncio.sleep(1.5)
        assert len(drawn) <= 1.5 / 0.2 + 1
        assert all(later - earlier > 0.19 for earlier, later in pairwise(drawn))
        assert isinstance(view, LiveView)

    asyncio.run(cell())
