"""What runs on the scheduler: gangs queue for workers, and the ranks of one start together or not at all.

Dask has no such primitive, and `distributed.MultiLock` keeps a lock for ever whose client has died. This plugin lives
where workers and clients are seen to come and go, so it waits for a worker that is being restarted, frees what a dead
client held, tells a gang at once which worker it lost, and refuses a rank that Dask starts a second time by itself.

A refusal is {"refused": kind, "why": sentence}, and the sentence is for people.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from distributed import Client, Scheduler, Status
from distributed.diagnostics.plugin import SchedulerPlugin

from labkit.cluster import deadlines
from labkit.cluster.channels import post
from labkit.cluster.under_way import clock
from labkit.cluster.workers import WorkerInfo, WorkerPool
from labkit.errors import GangError
from labkit.text import some

Refusal = Literal["busy", "left", "halted", "late", "lost", "repeated", "orphaned"]


def _refused(kind: Refusal, why: str) -> dict[str, Any]:
    return {"refused": kind, "why": why}


_LEFT = _refused("left", "the gang has left")


class Holder(NamedTuple):
    """Who has workers that others wait for: its title, and since when, in seconds since 1970, or 0 if nobody knows."""

    title: str
    since: float


def waiting(holders: Iterable[Holder]) -> str:
    """Whom somebody waits for, as a sentence says it.

    >>> waiting([Holder("tasks of simulate", 0.0)])
    'the workers are held by tasks of simulate'
    """
    each = [f"{it.title} (since {clock(it.since)})" if it.since else it.title for it in holders]
    return f"the workers are held by {' and '.join(each)}"


@dataclass(eq=False)
class _Entry:
    """One gang in the queue, from its coming to its end."""

    gang: str  # the address of its inbox
    client: str
    ranks: int
    title: str
    since: float = 0.0  # when it got its workers
    workers: list[str] = field(default_factory=list)  # by rank, once the gang's turn has come
    nannies: set[str] = field(default_factory=set)  # those of the workers that are started again when they die
    ports: dict[int, int | None] = field(default_factory=dict)  # rank that has arrived -> where rank 0 listens
    gone: set[int] = field(default_factory=set)  # ranks that have arrived and left
    first_failed: int | None = None
    told: list[tuple[str, float]] = field(default_factory=list)  # who has the workers that it waits for
    over: dict[str, Any] = field(default_factory=dict)  # why nobody may start any more
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, refusal: dict[str, Any]) -> None:
        """Let nobody start any more, and tell those who wait."""
        self.over = self.over or refusal
        self.turn.set()
        self.complete.set()


class GangQueue(SchedulerPlugin):
    """Gives gangs their workers in the order of their coming, each as soon as enough are free of other gangs."""

    name = "labkit-gang-queue"
    idempotent = True

    def __init__(self) -> None:
        self.entries: dict[str, _Entry] = {}  # in order of arrival
        self._left: deque[str] = deque(maxlen=1000)  # one that was stopped may leave before its `enter` arrives

    async def start(self, scheduler: Scheduler) -> None:
        """Called by Dask when the plugin is registered: from now on clients and workers can call these."""
        self.scheduler = scheduler
        for call in (self.enter, self.arrive, self.failed, self.depart, self.halt, self.leave):
            scheduler.handlers[f"labkit_gang_{call.__name__}"] = call

    # -- called by the client

    async def enter(self, gang: str, client: str, ranks: int, timeout: float, title: str) -> dict[str, Any]:
        """Wait for `ranks` free workers: {"workers": …} by rank, or a refusal.

        From then on the inbox `gang` hears when all ranks have arrived, or which of them had not in time.
        """
        if gang in self._left:
            return _LEFT
        entry = self.entries[gang] = _Entry(gang, client, ranks, title)
        begun = time.monotonic()
        self._admit()
        try:
            await asyncio.wait_for(entry.turn.wait(), timeout)
        except TimeoutError:
            refusal = _refused("busy", self._why_busy(entry))
            del self.entries[gang]
            self._admit()
            return refusal
        left = max(timeout - (time.monotonic() - begun), 0.1)
        self.scheduler.loop.call_later(left, self._require_all, entry)
        return entry.over or {"workers": entry.workers}

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

    # -- inside

    def _admit(self) -> None:
        self._admit_those_in_front()
        self._tell_holders()

    def _admit_those_in_front(self) -> None:
        """First come, first served, so that a gang that needs many workers is not overtaken for ever."""
        taken = {worker for entry in self.entries.values() for worker in entry.workers}
        for entry in self.entries.values():
            if entry.workers or entry.over:
                continue
            free = [worker for worker in self._alive() if worker not in taken]
            if len(free) < entry.ranks:
                return
            workers = self.scheduler.workers
            chosen = sorted(free, key=lambda worker: bool(workers[worker].processing))[: entry.ranks]  # the idle first
            entry.workers = [worker for worker in free if worker in chosen]
            entry.nannies = {worker for worker in chosen if workers[worker].nanny}
            taken.update(chosen)
            entry.since = time.time()
            entry.turn.set()
            self.scheduler.loop.call_later(deadlines.SETTLE, self._tell_of_tasks, entry)

    def _tell_holders(self) -> None:
        """Let those who wait know for whom."""
        holders = [(entry.title, entry.since) for entry in self.entries.values() if entry.workers]
        for entry in self.entries.values():
            if not entry.workers and not entry.over and entry.told != holders:
                entry.told = holders
                post(self.scheduler, entry.gang, holders=holders)

    def _tell_of_tasks(self, entry: _Entry) -> None:
        """Let a gang know which tasks its ranks wait behind, of a map, say."""
        if entry.complete.is_set() or entry.over:
            return
        missing = [self.scheduler.workers.get(entry.workers[k]) for k in range(entry.ranks) if k not in entry.ports]
        others = {task.prefix.name for it in missing if it for task in it.processing if entry.gang not in str(task.key)}
        if others:
            post(self.scheduler, entry.gang, holders=[(f"tasks of {name}", 0.0) for name in sorted(others)])

    def _require_all(self, entry: _Entry) -> None:
        """Time is up for ranks that have not arrived."""
        if not entry.complete.is_set():
            entry.end(_refused("late", "the other ranks did not start in time"))
            missing = [rank for rank in range(entry.ranks) if rank not in entry.ports]
            post(self.scheduler, entry.gang, missing=[self._why_missing(entry, rank) for rank in missing])

    def _alive(self) -> list[str]:
        """The workers in the order in which a lab lists them."""
        # one that joins says "init", and shortly after that "running"; one without memory left is "paused"
        ready = (Status.init, Status.running)
        alive = [state for state in self.scheduler.workers.values() if state.status in ready]
        return [state.address for state in sorted(alive, key=lambda state: (len(str(state.name)), str(state.name)))]

    async def _clear(self, entry: _Entry) -> None:
        """Leave in place of a client that is gone, once its ranks are."""
        if entry.client not in self.scheduler.clients and entry.gone >= set(entry.ports):
            await self.leave(entry.gang)

    def _why_busy(self, entry: _Entry) -> str:
        alive = len(self._alive())
        if alive < entry.ranks:
            return f"only {alive} worker{'s are' if alive != 1 else ' is'} there"
        return waiting(Holder(it.title, it.since) for it in self.entries.values() if it.workers)

    def _why_missing(self, entry: _Entry, rank: int) -> str:
        worker = entry.workers[rank]
        state = self.scheduler.workers.get(worker)
        if state is None:
            return f"rank {rank} is missing, its worker {worker} is gone"
        others = sum(1 for task in state.processing if not str(task.key).startswith(entry.gang))
        why = f"busy with {some(others, 'other task')}" if others else "not ready"
        return f"rank {rank} is missing, its worker {worker} is {why}"


class QueueAccess:
    """The gang queue as one client knows it; used on the client's event loop but for `room`."""

    _known: ClassVar[weakref.WeakKeyDictionary[Client, QueueAccess]] = weakref.WeakKeyDictionary()

    def __init__(self) -> None:
        self._registered: asyncio.Future[None] | None = None
        self._workers, self._until = 0, 0.0

    @classmethod
    def of(cls, client: Client) -> QueueAccess:
        """That of this client."""
        return cls._known.setdefault(client, cls())

    async def ready(self, client: Any) -> None:
        """Have the queue on the scheduler; the first launch of a client pays for it."""
        if self._registered is None:
            self._registered = asyncio.ensure_future(client.register_plugin(GangQueue()))
        try:
            await asyncio.shield(self._registered)
        except ImportError as error:
            self._registered = None
            raise GangError(f"the scheduler cannot import labkit ({error}): install the same version there.") from error

    def expect(self, workers: int) -> None:
        """A worker has gone that its nanny starts again: until then the lab has fewer than `workers`."""
        self._workers, self._until = workers, time.monotonic() + deadlines.COMEBACK

    def room(self, workers: Sequence[WorkerInfo]) -> int:
        """How many ranks there is room for on these workers and those that are about to be back."""
        return max(len(workers), self._workers if time.monotonic() < self._until else 0)

    def room_for(self, ranks: int | None, workers: Sequence[WorkerInfo]) -> int:
        """The same; raises GangError where it is not enough."""
        there = self.room(workers)
        if not there:
            raise GangError(
                "the lab has no workers: wait until some have come, or start some with lk.connect(workers=2)."
            )
        if ranks is not None and ranks > there:
            raise GangError(
                f"{ranks} ranks need {ranks} workers, but the lab has {there}:"
                f" ask for ranks={there}, or start the lab with lk.connect(workers={ranks})."
            )
        if any(worker.address.startswith("inproc://") for worker in workers):
            raise GangError(
                "the workers are threads of this process, which can be one rank only: connect with processes."
            )
        return there


def room(lab: WorkerPool) -> int:
    """How many ranks a lab has room for; a worker that has just died is about to be back, and counts."""
    return QueueAccess.of(lab.client).room(lab.workers)


def ask(rpc: Any, question: str, gang: str, **details: Any) -> Awaitable[Any]:
    """Put a question to the queue, through a client's or a worker's connection to the scheduler."""
    answer: Awaitable[Any] = getattr(rpc, f"labkit_gang_{question}")(gang=gang, **details)
    return answer
