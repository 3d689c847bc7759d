"""What runs on the scheduler: gangs queue for workers, and the ranks of one start together or not at all.

Dask has no such primitive, and `distributed.MultiLock` keeps a lock for ever whose client has died. This plugin lives
where workers and clients are seen to come and go, so it waits for a worker that is being restarted, frees what a dead
client held, tells a gang at once which worker it lost, and refuses a rank that Dask starts a second time by itself.

A refusal is {"refused": kind, "why": sentence}, and the sentence is for people.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from labkit.cluster import deadlines
from labkit.cluster.channels import listens, post
from labkit.cluster.gang.occupied import Release, alive, at_long_tasks, full, titles, use_of
from labkit.cluster.under_way import clock
from labkit.text import some

Refusal = Literal["busy", "missing", "left", "halted", "late", "lost", "repeated", "orphaned"]


def _refused(kind: Refusal, why: str) -> dict[str, Any]:
    return {"refused": kind, "why": why}


_LEFT = _refused("left", "the gang has left")


class Holder(NamedTuple):
    """Who has workers that others wait for: its title, and since when, in seconds since 1970, or 0 if nobody knows."""

    title: str
    since: float


class Others(NamedTuple):
    """What others do with workers: how many are at long tasks, and how many that were ended will soon be back."""

    occupied: int = 0
    returning: int = 0


class Lack(NamedTuple):
    """Too few workers: how many there are, how many are wanted, whose memory is full, and who wants them first."""

    there: int
    wanted: int
    full: Sequence[str] = ()
    by: str = ""  # the title of a gang that came before; "" where it is the one that waits


def waiting(holders: Iterable[Holder], lack: Lack | None = None) -> str:
    """What somebody waits for, as a sentence says it; "" for nothing.

    >>> waiting([Holder("tasks of simulate", 0.0)])
    'the workers are held by tasks of simulate'
    >>> waiting([], Lack(1, 2, ["0"]))
    'only 1 of 2 workers is there, and worker 0 has used up its memory'
    """
    if lack is not None:
        number = f"only {lack.there} of {some(lack.wanted, 'worker')} {'is' if lack.there == 1 else 'are'} there"
        first = f", for which {lack.by} waits before this one" if lack.by else ""
        full = [f", and worker {name} has used up its memory" for name in lack.full]
        return f"{number}{first}{''.join(full)}"
    each = [f"{it.title} (since {clock(it.since)})" if it.since else it.title for it in holders]
    return f"the workers are held by {' and '.join(each)}" if each else ""


@dataclass(eq=False)
class _Entry:
    """One gang in the queue, from its coming to its end."""

    gang: str  # the address of its inbox
    client: str
    ranks: int
    title: str
    unclear: float = 0.0  # since when it waits for tasks of which nobody knows how long they take
    since: float = 0.0  # when it got its workers
    workers: list[str] = field(default_factory=list)  # by rank, once the gang's turn has come
    nannies: set[str] = field(default_factory=set)  # those of the workers that are started again when they die
    ports: dict[int, int | None] = field(default_factory=dict)  # rank that has arrived -> where rank 0 listens
    gone: set[int] = field(default_factory=set)  # ranks that have arrived and left
    first_failed: int | None = None
    told: dict[str, Any] = field(default_factory=dict)  # what it waits for, as it was last told
    over: dict[str, Any] = field(default_factory=dict)  # why nobody may start any more
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    limit: asyncio.TimerHandle | None = None  # would keep the entry until the time is up

    def end(self, refusal: dict[str, Any]) -> None:
        """Let nobody start any more, and tell those who wait."""
        self.over = self.over or refusal
        self.turn.set()
        self.complete.set()
        if self.limit is not None:
            self.limit.cancel()


class GangQueue(SchedulerPlugin):
    """Gives gangs their workers in the order of their coming, each as soon as enough are free of other gangs."""

    name = "labkit-gang-queue"
    idempotent = True

    def __init__(self) -> None:
        self.entries: dict[str, _Entry] = {}  # in order of arrival
        self._looking = False  # whether somebody looks again soon
        self._left: deque[str] = deque(maxlen=1000)  # one that was stopped may leave before its `enter` arrives

    async def start(self, scheduler: Scheduler) -> None:
        """Called by Dask when the plugin is registered: from now on clients and workers can call these."""
        self.scheduler = scheduler
        self.release = Release(scheduler)
        for call in (self.enter, self.others, self.arrive, self.failed, self.depart, self.halt, self.leave):
            scheduler.handlers[f"labkit_gang_{call.__name__}"] = call

    # -- called by the client

    async def enter(self, gang: str, client: str, ranks: int, timeout: float, title: str) -> dict[str, Any]:
        """Wait for `ranks` free workers: {"workers": …} by rank, or a refusal.

        From then on the inbox `gang` hears when all ranks have arrived, or which of them had not in time.
        """
        if gang in self._left:
            return _LEFT
        listens(self.scheduler, client, gang)  # else nobody would tell it for whom it waits
        until, left = time.monotonic() + timeout, timeout
        while True:
            entry = self.entries[gang] = _Entry(gang, client, ranks, title)  # in the place that it had
            self._admit()
            try:
                await asyncio.wait_for(entry.turn.wait(), left)
            except TimeoutError:
                lack = self._lack(entry)
                refusal = _refused("missing" if lack else "busy", waiting((), lack) or self._why_busy())
                del self.entries[gang]
                self._admit()
                return refusal
            left = max(until - time.monotonic(), 0.1)
            if entry.over.get("refused") != "lost":  # a worker that dies before the gang has heard of it is no loss
                break
        if not entry.over:
            entry.limit = asyncio.get_running_loop().call_later(left, self._require_all, entry)
        return entry.over or {"workers": entry.workers}

    async def others(self) -> Others:
        """What workers do that are at no ranks."""
        return Others(sum(at_long_tasks(it) for it in self._untaken()), self.release.returning())

    async def halt(self, gang: str) -> None:
        """Let no rank start from now on; the workers stay taken until `leave`."""
        if gang in self.entries:
            self.entries[gang].end(_refused("halted", "the gang was ended"))

    async def leave(self, gang: str) -> None:
        """Give the workers to the next gang."""
        self._left.append(gang)
        if gang in self.entries:
            self.entries.pop(gang).end(_LEFT)
            self._admit()

    # -- called by the ranks

    async def arrive(self, gang: str, rank: int, port: int | None) -> dict[str, Any]:
        """Wait for all other ranks: {"port": where rank 0 listens}, or a refusal."""
        entry = self.entries.get(gang)
        if entry is None or entry.over:
            return entry.over if entry else _LEFT
        if rank in entry.ports:
            return _refused("repeated", "Dask started this rank a second time")
        entry.ports[rank] = port
        if len(entry.ports) == entry.ranks:
            entry.complete.set()
            post(self.scheduler, gang, assembled=True)
        await entry.complete.wait()
        return entry.over or {"port": entry.ports[0]}

    async def failed(self, gang: str, rank: int) -> int:
        """The rank that failed first, which may be this one."""
        entry = self.entries.get(gang)
        if entry is None:
            return -1
        if entry.first_failed is None:
            entry.first_failed = rank
        return entry.first_failed

    async def depart(self, gang: str, rank: int) -> None:
        """A rank has ended; the last one of a dead client frees the workers."""
        entry = self.entries.get(gang)
        if entry is not None:
            entry.gone.add(rank)
            await self._clear(entry)

    # -- called by Dask

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        self._admit()

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **_: Any) -> None:
        for entry in [entry for entry in self.entries.values() if worker in entry.workers]:
            entry.end(_refused("lost", f"worker {worker} is gone"))
            entry.gone.add(entry.workers.index(worker))
            post(scheduler, entry.gang, lost=worker, returns=worker in entry.nannies)
            scheduler.loop.add_callback(self._clear, entry)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        for entry in [entry for entry in self.entries.values() if entry.client == client]:
            entry.end(_refused("orphaned", "its client is gone"))
            scheduler.loop.add_callback(self._clear, entry)
            scheduler.loop.call_later(deadlines.GONE_CLIENT, scheduler.loop.add_callback, self.leave, entry.gang)
        self.release.client_left()

    # -- inside

    def _admit(self) -> None:
        self._admit_those_in_front()
        self._tell_what_for()
        if self._waiting() and not self._looking:  # of tasks that end or turn out to be long nobody tells
            self._looking = True
            self.scheduler.loop.call_later(deadlines.TICK, self._look_again)

    def _look_again(self) -> None:
        self._looking = False
        self._admit()

    def _admit_those_in_front(self) -> None:
        """First come, first served, so that a gang that needs many workers is not overtaken for ever.

        It lets others pass only while it needs workers that long tasks have.
        """
        taken = {worker for entry in self.entries.values() for worker in entry.workers}
        uses = {state.address: use_of(state, self.release.left) for state in alive(self.scheduler)}
        for entry in self.entries.values():
            if entry.workers or entry.over:
                continue
            untaken = [worker for worker in uses if worker not in taken]
            if len(untaken) < entry.ranks:
                return
            free = [worker for worker in untaken if uses[worker] == "free"]
            perhaps = [worker for worker in untaken if uses[worker] != "occupied"]
            if len(perhaps) < entry.ranks:
                continue
            if len(free) < entry.ranks:
                entry.unclear = entry.unclear or time.monotonic()
                if time.monotonic() - entry.unclear < deadlines.LONG_TASK:
                    return
            workers = self.scheduler.workers
            # the idle first
            order = sorted(perhaps, key=lambda it: (uses[it] != "free", bool(workers[it].processing)))
            chosen = order[: entry.ranks]
            entry.workers = [worker for worker in untaken if worker in chosen]
            entry.nannies = {worker for worker in chosen if workers[worker].nanny}
            taken.update(chosen)
            entry.since = time.time()
            entry.turn.set()
            self.scheduler.loop.call_later(deadlines.SETTLE, self._tell_of_tasks, entry)

    def _untaken(self) -> list[Any]:
        taken = {worker for entry in self.entries.values() for worker in entry.workers}
        return [it for it in alive(self.scheduler) if it.address not in taken]

    def _holders(self) -> list[Holder]:
        """Who has workers: gangs, and tasks that take long."""
        gangs = [Holder(entry.title, entry.since) for entry in self.entries.values() if entry.workers]
        occupied = [it for it in self._untaken() if use_of(it) == "occupied"]
        return [*gangs, *(Holder(title, 0.0) for title in (titles(occupied) if occupied else ()))]

    def _waiting(self) -> list[_Entry]:
        return [entry for entry in self.entries.values() if not entry.workers and not entry.over]

    def _lack(self, entry: _Entry) -> Lack | None:
        """The workers that are not there for a gang that waits, or for one that waits before it."""
        there = len(alive(self.scheduler))
        for other in self._waiting():
            if there < other.ranks:
                return Lack(there, other.ranks, full(self.scheduler), "" if other is entry else other.title)
            if other is entry:
                break
        return None

    def _tell_what_for(self) -> None:
        """Let those who wait know what for."""
        those = self._waiting()
        holders = self._holders() if those else []
        for entry in those:
            waits = {"holders": [tuple(it) for it in holders], "lack": self._lack(entry)}
            if entry.told != waits:
                entry.told = waits
                post(self.scheduler, entry.gang, **waits)

    def _tell_of_tasks(self, entry: _Entry) -> None:
        """Let a gang know which tasks its ranks wait behind, of a map, say."""
        if entry.complete.is_set() or entry.over:
            return
        missing = [self.scheduler.workers.get(entry.workers[k]) for k in range(entry.ranks) if k not in entry.ports]
        others = {task.prefix.name for it in missing if it for task in it.processing if entry.gang not in str(task.key)}
        if others:
            post(self.scheduler, entry.gang, holders=[(f"tasks of {name}", 0.0) for name in sorted(others)], lack=None)

    def _require_all(self, entry: _Entry) -> None:
        """Time is up for ranks that have not arrived."""
        if not entry.complete.is_set():
            entry.end(_refused("late", "the other ranks did not start in time"))
            missing = [rank for rank in range(entry.ranks) if rank not in entry.ports]
            post(self.scheduler, entry.gang, missing=[self._why_missing(entry, rank) for rank in missing])

    async def _clear(self, entry: _Entry) -> None:
        """Leave in place of a client that is gone, once its ranks are."""
        if entry.client not in self.scheduler.clients and entry.gone >= set(entry.ports):
            await self.leave(entry.gang)

    def _why_busy(self) -> str:
        return waiting(self._holders()) or f"the workers are at {' and '.join(titles(alive(self.scheduler)))}"

    def _why_missing(self, entry: _Entry, rank: int) -> str:
        worker = entry.workers[rank]
        state = self.scheduler.workers.get(worker)
        if state is None:
            return f"rank {rank} is missing, its worker {worker} is gone"
        others = sum(1 for task in state.processing if not str(task.key).startswith(entry.gang))
        why = f"busy with {some(others, 'other task')}" if others else "not ready"
        return f"rank {rank} is missing, its worker {worker} is {why}"
