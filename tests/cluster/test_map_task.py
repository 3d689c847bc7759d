"""An item of a map whose value, exception or end does not travel by itself: one sentence, and free workers."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from labkit.cluster.lab import Lab
from labkit.errors import Stopped, TaskError, WorkerLost


def endless(n: int) -> Any:
    return n * endless(n - 1)


def deep(n: int) -> Any:
    if n == 0:
        raise ValueError("at the bottom")
    return deep(n - 1)


def chained(n: int) -> None:
    try:
        if n == 0:
            raise ValueError("at the bottom")
        chained(n - 1)
    except ValueError as error:
        raise ValueError(f"link {n}") from error


class Picky(Exception):
    """Cannot be made of its message alone, so that it cannot be unpickled."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


class Locked(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("with a lock")
        self.lock = threading.Lock()


def picky(_: int) -> None:
    raise Picky(1, 2)


def locked(_: int) -> None:
    raise Locked


@pytest.mark.parametrize(
    ("fn", "item", "said"),
    [
        (endless, 5, "RecursionError: maximum recursion depth exceeded"),
        (deep, 700, "ValueError: at the bottom"),
        (chained, 150, "ValueError: link 150"),
        (picky, 1, r"1 and 2"),
        (locked, 1, r"with a lock"),
        (os.listdir, "/no/such/folder", "FileNotFoundError"),
    ],
)
def test_whatever_an_item_raises_is_told(lab: Lab, fn: Callable[[Any], Any], item: Any, said: str) -> None:
    with pytest.raises(TaskError, match=rf"^item 0 \({item!r}\) failed on worker [01] with (?s:.*){said}"):
        lab.map(fn, [item]).result(timeout=60)


class Unreadable:
    """Can be pickled, and not be read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda k: (i for i in range(k)), r"item 1 \(1\) returned a generator, which cannot be sent .*: return a list"),
        (lambda k: {"locks": [threading.Lock()]}, r"item 1 \(1\) returned a dict, which cannot be sent .*lock.*return"),
        (lambda k: sys.__stdout__, r"item 1 \(1\) returned a TextIOWrapper, which cannot be sent"),
        (lambda k: [Unreadable()], r"item 1 \(1\) returned something, which cannot be read here \(ValueError: invalid"),
    ],
)
def test_a_value_that_cannot_travel_is_named(lab: Lab, made: Callable[[int], Any], sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        lab.map(lambda k: made(k) if k else 0, range(3)).result(timeout=30)
    assert lab.map(abs, [-1]).result() == [1]


def test_big_arrays_come_back_as_they_were(lab: Lab) -> None:
    one, two = lab.map(lambda k: {"x": np.full((300, 1000), k), "y": [np.arange(3)]}, [1, 2]).result()
    assert one["x"].shape == (300, 1000) and (two["x"] == 2).all() and one["y"][0].tolist() == [0, 1, 2]
    one["x"][0, 0] = 7  # and can be written to


def test_an_async_function_is_awaited(lab: Lab) -> None:
    async def later(k: int) -> int:
        import asyncio

        await asyncio.sleep(0.01)
        return k * k

    assert lab.map(later, range(3)).result(timeout=30) == [0, 1, 4]


def in_python(_: int) -> None:
    while True:
        pass


def deaf(_: int) -> None:
    while True:
        with suppress(BaseException):
            time.sleep(0.01)


def in_c(_: int) -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")  # for years, with the GIL


@pytest.mark.parametrize("fn", [in_python, deaf, in_c])
def test_workers_leave_what_was_cancelled(lab: Lab, fn: Callable[[int], None]) -> None:
    before = {worker.pid for worker in lab.workers}
    job = lab.map(fn, range(2))
    time.sleep(0.7)
    job.cancel()
    with pytest.raises(Stopped):
        job.result(timeout=1)
    assert lab.map(abs, [-1, -2, -3]).result(timeout=30) == [1, 2, 3]
    if fn is in_python:  # an interrupt was enough
        assert {worker.pid for worker in lab.workers} == before


def test_the_items_beside_a_failed_one_are_ended_too(lab: Lab) -> None:
    def work(k: int) -> None:
        if k:
            raise ValueError(k)
        while True:
            time.sleep(0.01)

    with pytest.raises(TaskError, match=r"^item 1"):
        lab.map(work, range(2)).result(timeout=30)
    assert lab.map(lambda _: time.sleep(0.05), range(2)).result(timeout=30) == [None, None]


def leaves_at_once(k: int) -> int:
    if k == 2:
        os._exit(3)
    return k


def closes_its_worker(k: int) -> int:
    if k == 2:
        from distributed import get_worker

        worker = get_worker()
        worker.loop.add_callback(worker.close)
        time.sleep(0.5)
    return k


@pytest.mark.skipif(sys.platform != "linux", reason="where nannies cannot see what their worker was at, Dask guesses")
@pytest.mark.parametrize("fn", [leaves_at_once, closes_its_worker])
def test_the_item_that_ends_its_worker_is_blamed_and_not_its_neighbour(lab: Lab, fn: Callable[[int], int]) -> None:
    with pytest.raises(WorkerLost, match=r"^item 2 \(2\) ended 4 workers"):
        lab.map(fn, range(4)).result(timeout=60)
    assert lab.map(fn, [0, 1, 3]).result(timeout=30) == [0, 1, 3]  # and the lab has workers
    lab.client.wait_for_workers(2, timeout=60)  # the one that the last item ended may be on its way


def test_maps_leave_nothing_with_the_scheduler(lab: Lab) -> None:
    scheduler = lab.cluster.scheduler
    for number in range(4):
        lab.map(lambda k: k, range(50)).result()
        lab.map(abs, range(50), label=f"run {number} <of> many").result()
    deadline = time.monotonic() + 5
    while scheduler.tasks and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any("lambda" in name or "many" in name for name in scheduler.task_groups)
    assert {"lambda", "run_of_many"} <= set(scheduler.task_prefixes)
    assert sum("lambda" in name or "many" in name for name in scheduler.task_prefixes) == 2
