"""A cell with a training on a lab is run again: the new run says who has the workers, or takes over a nameless one."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.cluster.lab import Lab
from tests.engines.mortals import reach


class Slow(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return super().forward(input)


def train(lab: Lab, rounds: int, algorithm: Any = None) -> Any:
    digits = lk.data.load("digits")
    return lk.train(lambda: Slow(64, 10), digits, algorithm, peers=2, rounds=rounds, on=lab)


def waits(run: Any) -> str:
    deadline = time.monotonic() + 20
    while not run.status.startswith("waiting"):
        assert time.monotonic() < deadline, run.status
        time.sleep(0.02)
    return str(run.status)


def test_a_run_that_waits_says_for_whom_and_begins_when_that_is_stopped(lab: Lab) -> None:
    first = train(lab, 5000)
    reach(first, 1)
    second = train(lab, 2)
    assert "held by Run: AllReduce, 2 peers, 5000 rounds (since " in waits(second)
    assert [work.name for work in lab.runs] == ["Run: AllReduce, 2 peers, 5000 rounds", second.still]
    assert lab.runs[1].progress.startswith("waiting, round 0 of 2: the workers are held by Run: ")
    time.sleep(0.5)
    assert not first.done  # it has a name
    lab.runs[0].stop()
    assert len(second.result(timeout=60).rows) == 2
    assert first.result(timeout=20).stopped
    assert not lab.runs


@pytest.mark.parametrize("algorithm", [lk.algorithms.AllReduce(), lk.algorithms.ParameterServer()], ids=repr)
def test_a_run_without_a_name_gives_way(lab: Lab, algorithm: Any) -> None:
    run = train(lab, 5000, algorithm)
    reach(run, 1)
    before = time.monotonic()
    run = train(lab, 2, algorithm)  # as a cell that is run again does
    history = run.result(timeout=60)
    assert len(history.rows) == 2 and time.monotonic() - before < 40
    (note,) = [event for event in history.events if event.kind == "note" and "5000 rounds" in event.text]
    assert "no name any more: it was stopped" in note.text


def test_a_run_that_is_shown_or_kept_in_a_list_is_not_nameless(lab: Lab) -> None:
    kept, shown = [lk.train(lambda: nn.Linear(64, 10), lk.data.load("digits"), peers=2, rounds=3)], None
    inner = kept[0].__dict__["_nameless"]
    assert not inner.is_set()
    shown = lk.train(lambda: nn.Linear(64, 10), lk.data.load("digits"), peers=2, rounds=3)
    event = shown.__dict__["_nameless"]
    shown._repr_mimebundle_()
    shown = None
    assert not event.is_set()
    kept.clear()
    deadline = time.monotonic() + 5
    while not inner.is_set():
        assert time.monotonic() < deadline
        time.sleep(0.01)
