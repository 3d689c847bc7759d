"""`lab.runs`: what is under way, since when, how far it is, and its end."""

from __future__ import annotations

import time

import pytest

from labkit.cluster.lab import Lab
from labkit.errors import Stopped


def nap(seconds: float) -> None:
    for _ in range(int(100 * seconds)):
        time.sleep(0.01)


def until(lab: Lab, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(lab.runs) != count:
        assert time.monotonic() < deadline, lab.runs
        time.sleep(0.02)


def test_maps_and_launches_are_listed_and_can_be_stopped(lab: Lab) -> None:
    assert repr(lab.runs) == "nothing is under way on this lab"
    begin = time.time()
    job = lab.map(time.sleep, [0.1] * 300, label="naps <b>")
    gang = lab.launch(nap, 60.0, ranks=2)
    named = {work.name: work for work in lab.runs}
    assert list(named) == ["Job naps <b>", "Gang: nap as 2 ranks"]
    assert begin <= named["Job naps <b>"].since <= time.time()
    assert "of 300 items" in repr(lab.runs)
    assert "naps &lt;b&gt;" in lab.runs._repr_html_()
    lab.runs.stop()
    for work in (job, gang):
        with pytest.raises(Stopped):
            work.result(timeout=20)
    until(lab, 0)


def test_a_launch_that_waits_says_for_whom(lab: Lab) -> None:
    first = lab.launch(nap, 60.0, ranks=2)
    deadline = time.monotonic() + 30
    while not first.workers:  # the test before may have left something to end
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = lab.launch(nap, 0.0, ranks=2)
    while not second.waits:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert second.waits.startswith("the workers are held by Gang: nap as 2 ranks (since ")
    assert "held by Gang: nap as 2 ranks (since " in {work.handle: work for work in lab.runs}[second].progress
    first.stop()
    second.result(timeout=30)
    assert second.waits == ""
