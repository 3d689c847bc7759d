"""Occupied workers, as the scheduler sees them: by tasks that take long, or by tasks that nobody wants any more.

On a cluster that several kernels share, the ranks of one would wait for ever behind an endless task of another. A task
that runs cannot be taken away, not even when its client has gone: the scheduler forgets it, its thread goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal

from distributed import Scheduler, Status

from labkit.cluster import deadlines

Use = Literal["free", "unclear", "occupied"]


def alive(scheduler: Scheduler) -> list[Any]:
    """The states of the workers that could compute, in the order in which a lab lists them."""
    # one that joins says "init", and shortly after that "running"
    return _in_order(state for state in scheduler.workers.values() if state.status in (Status.init, Status.running))


def full(scheduler: Scheduler) -> list[str]:
    """The names of the workers that begin nothing before some of their memory is free again."""
    return [str(it.name) for it in _in_order(scheduler.workers.values()) if it.status is Status.paused]


def _in_order(states: Iterable[Any]) -> list[Any]:
    return sorted(states, key=lambda state: (len(str(state.name)), str(state.name)))


def use_of(worker: Any, left: float = 0.0) -> Use:
    """Whether a rank would soon have a thread of this worker; "unclear" where nobody knows how long a task takes.

    `left` is when a client last left, in seconds since 1970: what a worker said before tells nothing of its tasks.
    """
    executing, forgotten = _executing(worker), _forgotten(worker)
    unheard = worker.last_seen < left + deadlines.SETTLE
    if at_long_tasks(worker) or unheard or _long(executing) + forgotten >= worker.nthreads:
        return "occupied"
    unknown = sum(
        task.prefix.duration_average < 0 or executing.get(task, 0) > deadlines.LONG_TASK for task in worker.processing
    )
    return "unclear" if unknown + forgotten >= worker.nthreads else "free"


def at_long_tasks(worker: Any) -> bool:
    """Whether tasks that somebody wants have all threads of this worker for long.

    One at tasks that nobody wants any more is about to be free, and may be so already: it tells twice a second.
    """
    return _long(_executing(worker)) >= worker.nthreads or bool(
        worker.processing and _silence(worker) > deadlines.SILENT
    )


def titles(workers: Iterable[Any]) -> list[str]:
    """What occupies these workers, for people."""
    names = {task.prefix.name for worker in workers for task in worker.processing}
    return [f"tasks of {name}" for name in sorted(names)] or ["tasks that nobody wants any more"]


def _executing(worker: Any) -> dict[Any, float]:
    """For how long a worker has been at each of its tasks that somebody wants, in seconds."""
    silent = _silence(worker)
    return {task: seconds + silent for task, seconds in worker.executing.items() if task in worker.processing}


def _long(executing: dict[Any, float]) -> int:
    return sum(seconds > deadlines.LONG_TASK for seconds in executing.values())


def _forgotten(worker: Any) -> int:
    """How many threads are at tasks that the scheduler has forgotten, as the worker last said."""
    return int(worker.metrics.get("task_counts", {}).get("cancelled", 0))


def _silence(worker: Any) -> float:
    """Seconds since a worker last sent word; one whose task keeps the interpreter to itself sends none."""
    return time.time() - float(worker.last_seen)


def stays(worker: Any) -> bool:
    """Whether a worker is at what nobody wants any more, and at nothing else."""
    held_up = _silence(worker) > deadlines.SILENT and not worker.processing  # it says nothing
    return (_forgotten(worker) > 0 or held_up) and not _executing(worker)


class Release:
    """Gives workers fresh processes whose threads are still at tasks of a client that has gone."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler: Any = scheduler
        self.left = 0.0  # when a client last left, in seconds since 1970
        self._watching = False
        self._since: dict[str, float] = {}  # worker -> since when it stays with what nobody wants
        self._ended: dict[str, float] = {}  # nanny -> when its worker was ended

    def client_left(self) -> None:
        """Watch from now on which workers stay with what they do."""
        self.left = time.time()
        if not self._watching:
            self._watching = True
            self._scheduler.loop.call_later(deadlines.SETTLE, self._look)

    def returning(self) -> int:
        """How many of the workers that were ended are about to be back."""
        back = {it.nanny for it in alive(self._scheduler)}
        self._ended = {nanny: ended for nanny, ended in self._ended.items() if ended > time.time() - deadlines.COMEBACK}
        return len(self._ended.keys() - back)

    def _look(self) -> None:
        if self._scheduler.status != Status.running:
            return
        now = time.time()
        those = [it for it in alive(self._scheduler) if stays(it)]
        staying = {it.address: self._since.get(it.address, float(it.last_seen)) for it in those}
        late = [worker for worker, since in staying.items() if now - since >= deadlines.STUCK]
        self._since = {worker: since for worker, since in staying.items() if worker not in late}
        for state in those:
            if state.address in late and state.nanny:
                self._scheduler.loop.add_callback(self._restart, state.nanny)
        # word of a task that nobody wants may be slow to come, and an end that failed is tried again
        self._watching = bool(staying) or now - self.left < deadlines.STUCK + deadlines.SILENT
        if self._watching:
            self._scheduler.loop.call_later(deadlines.SETTLE, self._look)

    async def _restart(self, nanny: str) -> None:
        """Have this nanny kill its worker, as ranks do: a second time harms nobody, which `restart_workers` would."""
        self._ended[nanny] = time.time()
        kill = self._scheduler.rpc(nanny).kill(timeout=deadlines.EXIT, reason="at tasks of a client that is gone")
        with suppress(OSError, TimeoutError):
            await asyncio.wait_for(kill, deadlines.ANSWER)
