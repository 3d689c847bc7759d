"""A script that waits for its result says how far it is and how long it still takes; a notebook shows its view."""

from __future__ import annotations

import io
import sys

import pytest

import labkit as lk
from labkit.algorithms import AllReduce, LocalSGD
from labkit.training import live, status_line
from tests.engines.experiments import mlp


class Stderr(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def stderr(monkeypatch):
    def put(terminal=False, long=True, notebook=False):
        monkeypatch.setattr(sys, "stderr", Stderr(terminal))
        monkeypatch.setattr(live, "_TICK", 0.02)
        monkeypatch.setattr(status_line, "FIRST", 0.05 if long else 60.0)
        monkeypatch.setattr(status_line, "EVERY", 0.1)
        monkeypatch.setattr(status_line, "in_notebook", lambda: notebook)
        return sys.stderr

    return put


def waited_for(work):
    with pytest.raises(TimeoutError):
        work.result(1.5)
    work.stop()
    work.result(20)


def comparison():
    both = {"DDP": AllReduce(), "local": LocalSGD(4)}
    return lk.compare(both, mlp, lk.data.load("digits"), peers=2, steps=1_000_000)


def run():
    return lk.train(mlp, lk.data.load("digits"), peers=2, rounds=1_000_000)


@pytest.mark.parametrize("begun", [run, comparison])
def test_a_terminal_shows_one_line_with_the_time_left(stderr, monkeypatch, begun):
    monkeypatch.setenv("COLUMNS", "300")
    shown = stderr(terminal=True)
    waited_for(begun())
    text = shown.getvalue()
    assert "left" in text and text.startswith("\r\x1b[K") and text.count("\n") <= 2


def test_a_terminal_line_is_no_longer_than_the_terminal(stderr, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    shown = stderr(terminal=True)
    waited_for(comparison())
    assert 20 < max(map(len, shown.getvalue().replace("\n", "").split("\r\x1b[K"))) <= 29


@pytest.mark.parametrize("begun", [run, comparison])
def test_a_file_gets_a_line_now_and_then_once_it_takes_long(stderr, begun):
    shown = stderr()
    waited_for(begun())
    lines = shown.getvalue().splitlines()
    assert 2 <= len(lines) <= 20 and "\r" not in shown.getvalue()
    assert any("left" in line for line in lines)


@pytest.mark.parametrize("how", [{"long": False}, {"notebook": True}])
def test_what_is_quick_and_what_has_a_view_says_nothing(stderr, how):
    shown = stderr(**how)
    waited_for(run())
    assert shown.getvalue() == ""
