"""Which workers of a shared cluster leave no room: those at long tasks that somebody wants, not those of the dead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Status

from labkit.cluster import deadlines
from labkit.cluster.gang import occupied
from labkit.cluster.gang.occupied import Release, at_long_tasks, stays, use_of

LONG, SHORT = deadlines.LONG_TASK + 1, 0.1


def worker(seconds: tuple[float, ...] = (), forgotten: int = 0, threads: int = 1, silent: float = 0.0) -> Any:
    """A worker as the scheduler knows it, at wanted tasks for so many seconds each, and at so many forgotten ones."""
    tasks = {SimpleNamespaceHashed(prefix=SimpleNamespace(duration_average=0.1)): it for it in seconds}
    return SimpleNamespace(
        processing=set(tasks),
        executing=tasks,
        nthreads=threads,
        last_seen=time.time() - silent,
        metrics={"task_counts": {"cancelled": forgotten}},
    )


class SimpleNamespaceHashed(SimpleNamespace):
    __hash__ = object.__hash__


one = partial(partial, worker)  # which is made as late as in its test: a worker of the past would be a silent one


@pytest.mark.parametrize(
    ("state", "use", "long"),
    [
        (one(), "free", False),
        (one((SHORT,)), "free", False),
        (one((LONG,)), "occupied", True),
        (one((LONG,), threads=2), "free", False),
        (one(forgotten=1), "occupied", False),  # about to be free; what it last said may be older than that
        (one((LONG,), forgotten=1, threads=2), "occupied", False),
        (one((SHORT,), silent=deadlines.SILENT + 1), "occupied", True),
    ],
)
def test_only_long_tasks_that_somebody_wants_leave_no_room(state: Callable[[], Any], use: str, long: bool) -> None:
    assert (use_of(state()), at_long_tasks(state())) == (use, long)


def test_what_a_worker_said_before_a_client_left_tells_nothing() -> None:
    now = time.time()
    assert use_of(worker(), left=now) == "occupied"
    assert use_of(worker(), left=now - deadlines.SETTLE - 1) == "free"


@pytest.mark.parametrize(
    ("state", "stuck"),
    [
        (one(), False),
        (one(forgotten=1), True),
        (one((SHORT,), forgotten=1, threads=2), False),  # somebody else's task would die with it
        (one(silent=deadlines.SILENT + 1), True),
        (one((SHORT,), silent=deadlines.SILENT + 1), False),  # it may be what holds the worker up
    ],
)
def test_only_workers_that_nobody_needs_any_more_are_stuck(state: Callable[[], Any], stuck: bool) -> None:
    assert stays(state()) is stuck


class Clock:
    """A scheduler's loop whose time passes when it is told to."""

    def __init__(self) -> None:
        self.now, self.calls = 1000.0, list[tuple[float, Callable[..., Any], tuple[Any, ...]]]()

    def call_later(self, delay: float, call: Callable[..., Any], *args: Any) -> None:
        self.calls.append((self.now + delay, call, args))

    def add_callback(self, call: Callable[..., Any], *args: Any) -> None:
        asyncio.run(call(*args))

    def pass_on(self, seconds: float) -> None:
        until = self.now + seconds
        while self.calls and min(self.calls, key=lambda it: it[0])[0] <= until:
            first = min(self.calls, key=lambda it: it[0])
            self.calls.remove(first)
            self.now = first[0]
            first[1](*first[2])
        self.now = until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(occupied.time, "time", lambda: clock.now)
    return clock


def test_a_worker_that_is_stuck_is_ended_however_late_it_says_so_and_whoever_else_leaves(clock: Clock) -> None:
    """A watch that ended at its first look left a gang behind a dead kernel without its turn."""
    killed: list[float] = []

    class Nanny:
        async def kill(self, **_: Any) -> None:
            killed.append(clock.now)

    stuck = worker()
    stuck.status, stuck.nanny, stuck.address, stuck.name = Status.running, "nanny", "worker", 0
    scheduler: Any = SimpleNamespace(
        status=Status.running, workers={"worker": stuck}, loop=clock, rpc=lambda nanny: Nanny()
    )
    release = Release(scheduler)
    release.client_left()
    for second in range(40):
        stuck.last_seen = clock.now
        if second == 8:
            stuck.metrics["task_counts"]["cancelled"] = 1
        if second % 5 == 0 and second < 20:
            release.client_left()
        clock.pass_on(1)
    told = 1000.0 + 8
    assert killed, "the watch ended too early"
    assert deadlines.STUCK <= killed[0] - told <= deadlines.STUCK + 2 * deadlines.SETTLE
    assert len(killed) == 2  # and an end that failed is tried again
    assert release.returning() == 0, "it still is there"
    there = scheduler.workers.pop("worker")
    assert release.returning() == 1, "a launch counts on it"
    scheduler.workers["worker"] = there
    stuck.metrics["task_counts"]["cancelled"] = 0
    for _ in range(60):
        stuck.last_seen = clock.now
        clock.pass_on(1)
    assert not clock.calls  # nobody watches for ever
