"""The live view of a Run: traits follow the run, and its buttons steer it, without a browser."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
import time
from base64 import b64decode
from contextlib import suppress
from functools import partial
from itertools import pairwise

import pytest
import torch

import labkit as lk
from labkit.training.live import LiveView
from labkit.training.run import Throughput
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


def test_the_field_shows_the_learning_rate_and_changes_it(run):
    async def cell():
        run._repr_mimebundle_()
        view = run._views[0]
        await until(lambda: run.history.rows)
        assert view.rate.value == run.learning_rate == 0.1 and not view.rate.disabled
        view.rate.value = 0.02  # what a person types
        await until(lambda: run.history.events)
        await until(lambda: run.history.rows[-1].learning_rate == 0.02)
        run.learning_rate = 0.05  # what another cell says
        await until(lambda: view.rate.value == 0.05)
        run.stop()
        await until(lambda: view.rate.disabled)

    asyncio.run(cell())
    assert [it.text for it in run.history.events] == ["learning rate set to 0.02", "learning rate set to 0.05"]


def test_lanes_are_shown_as_soon_as_there_are_any():
    clocked = lk.Simulator(network=lk.Link(1e-3, 1e6), speeds=[1, 0.5])
    for on, shown in ((clocked, None), (lk.Simulator(), "none")):
        run = lk.train(mlp, lk.data.load("digits"), peers=2, rounds=20, on=on)
        run._repr_mimebundle_()
        run.result(timeout=30)
        view = run._views[0]
        assert view.lanes.layout.display == shown
        assert bytes(view.lanes.value).startswith(b"\x89PNG") is (shown is None)


def test_a_comparison_has_no_learning_rate_to_change():
    comparison = lk.compare({"each": lk.algorithms.AllReduce()}, mlp, lk.data.load("digits"), peers=2, steps=2)
    comparison._repr_mimebundle_()
    comparison.result(timeout=30)
    assert comparison._views[0].rate.layout.display == "none"
    with pytest.raises(lk.errors.SettingError, match=r"has no one learning rate: change that of a run"):
        comparison.learning_rate = 0.1


def test_the_status_tells_throughput_bytes_and_the_time_left(run):
    deadline = time.monotonic() + 20
    while "samples/s" not in run.status:
        assert time.monotonic() < deadline, run.status
        time.sleep(0.02)
    assert re.fullmatch(
        r"running · round \d+ of 1000000 · [^·]+ left · loss [\d.]+( · accuracy [\d.]+%)? · [\d,]+ samples/s · "
        r"[\d.]+ [kMG]B sent per peer",
        run.status,
    )


def test_throughput_counts_rounds_by_the_clock_and_forgets_a_pause(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("labkit.training.run.monotonic", lambda: now[0])
    speed = Throughput()
    for number in range(1, 101):
        now[0] = number * 0.1
        speed.note(number)
    assert speed.rate == pytest.approx(10.0)
    speed.forget()
    now[0] += 60.0
    speed.note(101)
    assert speed.rate is None
    now[0] += 0.5
    speed.note(103)
    assert speed.rate == pytest.approx(4.0)


def test_tensorboard_follows_a_run(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    while len(run.history.rows) < 5:
        time.sleep(0.01)
    run.tensorboard(tmp_path)
    since = len(run.history.rows)
    while len(run.history.rows) < since + 20:
        time.sleep(0.01)
    run.stop()
    rows = run.result(20).rows
    board = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    assert [(it.step, it.value) for it in board.Scalars("loss")] == [
        (row.round, pytest.approx(row.loss)) for row in rows
    ]


# Where tabulate is installed, torch imports it as Python ends, which then forgets that it was interrupted.
INTERRUPTED = (-signal.SIGINT, 1)
SCRIPT = """
import labkit as lk, torch
lk.train(torch.nn.Linear(64, 10), lk.data.load("digits"), peers=2, rounds=10**7).result()
"""


def test_a_script_in_a_terminal_shows_one_line_and_ends_on_ctrl_c():
    terminal, inside = pty.openpty()
    wide = os.environ | {"COLUMNS": "200"}
    script = subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=inside, stdout=inside, stderr=inside, env=wide)
    os.close(inside)
    seen, deadline = b"", time.monotonic() + 300  # torch alone takes a minute to import where many processes compute
    try:
        while b"samples/s" not in seen and time.monotonic() < deadline:
            seen += os.read(terminal, 4096)
        script.send_signal(signal.SIGINT)  # what a terminal makes of Ctrl-C
        with suppress(OSError):  # how Linux says that nobody is on the other side any more
            while chunk := os.read(terminal, 4096):
                seen += chunk
        assert script.wait(60) in INTERRUPTED
    finally:
        script.kill()
        script.wait()
        os.close(terminal)
    shown = seen.decode().split("Traceback")[0]
    assert {"round", "loss", "left", "samples/s"} <= set(re.findall(r"[a-z/]+", shown))
    assert "\r\x1b[K" in shown and shown.count("\n") <= 1, "always the same line"
    assert "KeyboardInterrupt" in seen.decode()


LONG_ROUNDS = """
import sys, time
import labkit as lk, torch
local = lk.algorithms.LocalSGD(every=3000)  # seconds, which the thread of the run spends inside of torch
run = lk.train(torch.nn.Linear(64, 10), lk.data.load("digits"), local, peers=2, on=lk.Lockstep())
time.sleep(0.5)
print("begun", flush=True)
if sys.argv[1] == "interrupted":
    run.result()
"""


@pytest.mark.parametrize(("how", "status"), [("interrupted", INTERRUPTED), ("at its end", (0,))])
def test_a_script_that_ends_within_a_round_ends_in_order(how, status):
    """Python aborts where it ends while another thread is inside of torch: "terminate called …", and a core dump."""
    script = subprocess.Popen([sys.executable, "-c", LONG_ROUNDS, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert script.stdout.readline() == b"begun\n"
        if how == "interrupted":
            time.sleep(0.2)
            script.send_signal(signal.SIGINT)
        said = script.communicate(timeout=60)[1]
    finally:
        script.kill()
    assert b"terminate" not in said and script.returncode in status


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


def test_a_finished_run_can_be_replayed_on_the_axis_of_the_whole():
    run = lk.train(mlp, lk.data.load("digits"), peers=2, rounds=30)
    run._repr_mimebundle_()
    view = run._views[0]
    run.result(timeout=60)
    view.refresh()
    assert view.replay.layout.display is None and (view.replay.min, view.replay.max, view.replay.value) == (1, 30, 30)
    whole = view.image.value
    view.replay.value = 10
    early = view.image.value
    view.replay.value = 30
    assert early != whole and view.image.value not in (early,)
    figure = run.picture_at(10).figure
    assert figure.axes[0].get_xlim() == (0, 30) and figure.axes[0].lines[-1].get_xdata()[-1] == 10


def test_the_picture_of_a_finished_run_is_drawn_once_and_stands_where_its_replay_ends(monkeypatch):
    run = lk.train(mlp, lk.data.load("digits"), peers=2, rounds=1_000_000)
    while len(run.history.rows) < 10:
        time.sleep(0.01)
    run.stop()
    run.result(timeout=30)
    drawn = []
    picture = type(run.history).picture
    monkeypatch.setattr(
        type(run.history), "picture", lambda *args, **axis: drawn.append(axis) or picture(*args, **axis)
    )
    run._repr_mimebundle_()
    assert len(drawn) == 1
    view = run._views[0]
    end = view.image.value
    view.replay.value = 1
    assert view.image.value != end
    view.replay.value = run.progress
    assert view.image.value == end and len(drawn) == 3


def test_a_run_under_way_offers_no_replay(run):
    run._repr_mimebundle_()
    assert run._views[0].replay.layout.display == "none"


def test_before_the_first_round_on_workers_it_says_what_it_waits_for(lab):
    run = lk.train(mlp, lk.data.load("digits"), peers=2, rounds=2, on=lab)
    said = run.status
    run.result(timeout=60)
    assert said.startswith("starting: the workers load torch") or "round" in said
    assert "round 2 of 2" in run.status
