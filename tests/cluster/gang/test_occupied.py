"""Which workers of a shared cluster leave no room: those at long tasks that somebody wants, not those of the dead."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from labkit.cluster import deadlines
from labkit.cluster.gang.occupied import at_long_tasks, use_of

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


@pytest.mark.parametrize(
    ("state", "use", "long"),
    [
        (worker(), "free", False),
        (worker((SHORT,)), "free", False),
        (worker((LONG,)), "occupied", True),
        (worker((LONG,), threads=2), "free", False),
        (worker(forgotten=1), "occupied", False),  # about to be free; what it last said may be older than that
        (worker((LONG,), forgotten=1, threads=2), "occupied", False),
        (worker((SHORT,), silent=deadlines.SILENT + 1), "occupied", True),
    ],
)
def test_only_long_tasks_that_somebody_wants_leave_no_room(state: Any, use: str, long: bool) -> None:
    assert (use_of(state), at_long_tasks(state)) == (use, long)
