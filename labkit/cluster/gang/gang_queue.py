"""What runs on the scheduler: gangs queue for workers, and the ranks of one start together or not at all.

Dask has no such primitive, and `distributed.MultiLock` keeps a lock for ever whose client has died. This plugin lives
where workers and clients are seen to come and go, so it waits for a worker that is being restarted, frees what a dead
client held, tells a gang at once which worker it lost, and refuses a rank that Dask starts a second time by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from distributed import Scheduler, Status
from distributed.diagnostics.plugin import SchedulerPlugin

from labkit.text import some

LINGER = 10.0  # seconds after which a dead client's workers are free, even where a rank never said that it has gone


@dataclass(eq=False)
class _Ticket:
    """One gang, from the queue to its end."""

    gang: str
    client: str
    topic: str
    ranks: int
    workers: list[str] = field(default_factory=list)  # by rank, once the gang is let through
    nannies: set[str] = field(default_factory=set)  # those of the workers that are started again when they die
    doors: dict[int, Any] = field(default_factory=dict)  # rank that has arrived -> where it can be reached
    gone: set[int] = field(default_factory=set)  # ranks that have arrived and left
    first_failed: int | None = None
    over: str = ""  # why nobody may start any more
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, reason: str) -> None:
        """Let nobody start any more, and tell those who wait."""
        self.over = self.over or reason
        self.turn.set()
        self.complete.set()


class Turnstile(SchedulerPlugin):
    """Lets gangs through in the order of their coming, each as soon as enough workers are free of other gangs."""

    name = "labkit-turnstile"
    idempotent = True

    def __init__(self) -> None:
        self.tickets: dict[str, _Ticket] = {}  # in order of arrival
        self._left: deque[str] = deque(maxlen=1000)  # one that was stopped may leave before its `enter` arrives

    async def start(self, scheduler: Scheduler) -> None:
        """Called by Dask when the plugin is registered: from now on clients and workers can call these."""
        self.scheduler = scheduler
        for call in (self.enter, self.assembled, self.arrive, self.failed, self.depart, self.halt, self.leave):
            scheduler.handlers[f"labkit_gang_{call.__name__}"] = call

    # -- called by the client

    async def enter(self, gang: str, client: str, topic: str, ranks: int, timeout: float) -> dict[str, Any]:
        """Wait for `ranks` free workers: {"workers": …} by rank, or {"refused": why}."""
        if gang in self._left:
            return {"refused": "it was stopped"}
        ticket = self.tickets[gang] = _Ticket(gang, client, topic, ranks)
        self._admit()
        try:
            await asyncio.wait_for(ticket.turn.wait(), timeout)
        except TimeoutError:
            why = self._obstacle(ticket)
            del self.tickets[gang]
            self._admit()
            return {"refused": why}
        return {"refused": ticket.over} if ticket.over else {"workers": ticket.workers}

    async def assembled(self, gang: str, timeout: float) -> dict[str, Any]:
        """Wait until every rank has arrived; when time is up nobody may start any more, and `missing` says why."""
        ticket = self.tickets.get(gang)
        if ticket is None:
            return {"over": "the gang has left", "missing": {}}
        try:
            await asyncio.wait_for(ticket.complete.wait(), timeout)
        except TimeoutError:
            ticket.end("the other ranks did not start in time")
        missing = [rank for rank in range(ticket.ranks) if rank not in ticket.doors]
        return {"over": ticket.over, "missing": {rank: self._excuse(ticket, rank) for rank in missing}}

    async def halt(self, gang: str, reason: str) -> None:
        """Let no rank start from now on; the workers stay taken until `leave`."""
        if gang in self.tickets:
            self.tickets[gang].end(reason)

    async def leave(self, gang: str) -> None:
        """Give the workers to the next gang."""
        self._left.append(gang)
        if gang in self.tickets:
            self.tickets.pop(gang).end("the gang has left")
            self._admit()

    # -- called by the ranks

    async def arrive(self, gang: str, rank: int, door: Any) -> dict[str, Any]:
        """Wait for all other ranks: {"door": rank 0's}, or {"refused": why}."""
        ticket = self.tickets.get(gang)
        if ticket is None or ticket.over:
            return {"refused": ticket.over if ticket else "the gang has left"}
        if rank in ticket.doors:
            return {"refused": "Dask started this rank a second time"}
        ticket.doors[rank] = door
        if len(ticket.doors) == ticket.ranks:
            ticket.complete.set()
        await ticket.complete.wait()
        return {"refused": ticket.over} if ticket.over else {"door": ticket.doors[0]}

    async def failed(self, gang: str, rank: int) -> int:
        """The rank that failed first, which may be this one."""
        ticket = self.tickets.get(gang)
        if ticket is None:
            return -1
        if ticket.first_failed is None:
            ticket.first_failed = rank
        return ticket.first_failed

    async def depart(self, gang: str, rank: int) -> None:
        """A rank has ended; the last one of a dead client frees the workers."""
        ticket = self.tickets.get(gang)
        if ticket is not None:
            ticket.gone.add(rank)
            await self._bury(ticket)

    # -- called by Dask

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        self._admit()

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **_: Any) -> None:
        for ticket in [ticket for ticket in self.tickets.values() if worker in ticket.workers]:
            ticket.end(f"worker {worker} is gone")
            ticket.gone.add(ticket.workers.index(worker))
            note = {"gang": ticket.gang, "lost": worker, "nanny": worker in ticket.nannies}
            scheduler.log_event(ticket.topic, note)
            scheduler.loop.add_callback(self._bury, ticket)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        for ticket in [ticket for ticket in self.tickets.values() if ticket.client == client]:
            ticket.end("its client is gone")
            scheduler.loop.add_callback(self._bury, ticket)
            scheduler.loop.call_later(LINGER, scheduler.loop.add_callback, self.leave, ticket.gang)

    # -- inside

    def _admit(self) -> None:
        """First come, first served, so that a gang that needs many workers is not overtaken for ever."""
        taken = {worker for ticket in self.tickets.values() for worker in ticket.workers}
        for ticket in self.tickets.values():
            if ticket.workers or ticket.over:
                continue
            free = [worker for worker in self._alive() if worker not in taken]
            if len(free) < ticket.ranks:
                return
            workers = self.scheduler.workers
            chosen = sorted(free, key=lambda worker: bool(workers[worker].processing))[: ticket.ranks]  # the idle first
            ticket.workers = [worker for worker in free if worker in chosen]
            ticket.nannies = {worker for worker in chosen if workers[worker].nanny}
            taken.update(chosen)
            ticket.turn.set()

    def _alive(self) -> list[str]:
        """The workers in the order in which a lab lists them."""
        # one that joins says "init", and shortly after that "running"; one without memory left is "paused"
        ready = (Status.init, Status.running)
        alive = [state for state in self.scheduler.workers.values() if state.status in ready]
        return [state.address for state in sorted(alive, key=lambda state: (len(str(state.name)), str(state.name)))]

    async def _bury(self, ticket: _Ticket) -> None:
        """Leave in place of a client that is gone, once its ranks are."""
        if ticket.client not in self.scheduler.clients and ticket.gone >= set(ticket.doors):
            await self.leave(ticket.gang)

    def _obstacle(self, ticket: _Ticket) -> str:
        alive = len(self._alive())
        if alive < ticket.ranks:
            return f"only {alive} worker{'s are' if alive != 1 else ' is'} there"
        others = sum(1 for other in self.tickets.values() if other is not ticket)
        return f"the workers are held by {others} other launch{'es' * (others != 1)}"

    def _excuse(self, ticket: _Ticket, rank: int) -> str:
        worker = ticket.workers[rank]
        state = self.scheduler.workers.get(worker)
        if state is None:
            return f"{worker} is gone"
        others = sum(1 for task in state.processing if not str(task.key).startswith(ticket.gang))
        return f"{worker} is busy with {some(others, 'other task')}" if others else f"{worker} is not ready"
