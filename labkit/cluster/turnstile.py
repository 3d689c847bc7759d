"""What runs on the scheduler: gangs queue for workers, and the ranks of one start together or not at all.

Dask has no such primitive, and `distributed.MultiLock` keeps a lock for ever whose client has died. This plugin lives
where workers and clients are seen to leave, so it frees what a dead client held, tells a gang at once which worker it
lost, and refuses a rank that Dask starts a second time by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

# Seconds that a dead client's workers stay taken, so that its ranks can end before another gang comes (rank.py).
LINGER = 5.0


@dataclass(eq=False)
class _Ticket:
    """One gang, from the queue to its end."""

    gang: str
    client: str
    topic: str
    ranks: int
    candidates: list[str]
    workers: list[str] = field(default_factory=list)  # by rank, once the gang is let through
    nannies: set[str] = field(default_factory=set)  # those of the workers that are started again when they die
    arrived: dict[int, Any] = field(default_factory=dict)  # rank -> where it can be reached
    first_failed: int | None = None
    over: str = ""  # why nobody may start any more
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, reason: str) -> None:
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
        for call in (self.enter, self.assembled, self.arrive, self.failed, self.halt, self.leave):
            scheduler.handlers[f"labkit_gang_{call.__name__}"] = call

    # -- called by the client

    async def enter(
        self, gang: str, client: str, topic: str, ranks: int, candidates: Sequence[str], timeout: float
    ) -> dict[str, Any]:
        """Wait for `ranks` free workers out of `candidates`: {"workers": …} by rank, or {"refused": why}."""
        if gang in self._left:
            return {"refused": "it was stopped"}
        ticket = self.tickets[gang] = _Ticket(gang, client, topic, ranks, list(candidates))
        self._admit()
        try:
            await asyncio.wait_for(ticket.turn.wait(), timeout)
        except TimeoutError:
            del self.tickets[gang]
            self._admit()
            return {"refused": f"the workers are held by {self._others(ticket)}"}
        return {"refused": ticket.over} if ticket.over else {"workers": ticket.workers}

    async def assembled(self, gang: str, timeout: float) -> dict[str, Any]:
        """Wait until every rank has arrived; when time is up nobody may start any more, and `missing` says why."""
        ticket = self.tickets[gang]
        try:
            await asyncio.wait_for(ticket.complete.wait(), timeout)
        except TimeoutError:
            ticket.end("the other ranks did not start in time")
        missing = [rank for rank in range(ticket.ranks) if rank not in ticket.arrived]
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
        if rank in ticket.arrived:
            return {"refused": "Dask started this rank a second time"}
        ticket.arrived[rank] = door
        if len(ticket.arrived) == ticket.ranks:
            ticket.complete.set()
        await ticket.complete.wait()
        return {"refused": ticket.over} if ticket.over else {"door": ticket.arrived[0]}

    async def failed(self, gang: str, rank: int) -> int:
        """The rank that failed first, which may be this one."""
        ticket = self.tickets.get(gang)
        if ticket is None:
            return -1
        if ticket.first_failed is None:
            ticket.first_failed = rank
        return ticket.first_failed

    # -- called by Dask

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **_: Any) -> None:
        for ticket in self.tickets.values():
            if worker in ticket.workers:
                ticket.end(f"worker {worker} is gone")
                note = {"gang": ticket.gang, "lost": worker, "nanny": worker in ticket.nannies}
                scheduler.log_event(ticket.topic, note)
        self._admit()

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        for ticket in [ticket for ticket in self.tickets.values() if ticket.client == client]:
            ticket.end("its client is gone")
            if ticket.workers:
                scheduler.loop.call_later(LINGER, scheduler.loop.add_callback, self.leave, ticket.gang)
            else:
                del self.tickets[ticket.gang]
        self._admit()

    # -- inside

    def _admit(self) -> None:
        """First come, first served: who waits reserves what it may need, so that nobody waits for ever."""
        taken = {worker for ticket in self.tickets.values() for worker in ticket.workers}
        for ticket in self.tickets.values():
            if ticket.workers or ticket.over:
                continue
            alive = [worker for worker in ticket.candidates if worker in self.scheduler.workers]
            free = [worker for worker in alive if worker not in taken]
            if len(alive) < ticket.ranks:
                ticket.end(f"only {len(alive)} of its workers are left")
            elif len(free) < ticket.ranks:
                taken.update(alive)
            else:
                idle_first = sorted(free, key=lambda worker: bool(self.scheduler.workers[worker].processing))
                chosen = idle_first[: ticket.ranks]
                ticket.workers = [worker for worker in ticket.candidates if worker in chosen]
                ticket.nannies = {worker for worker in chosen if self.scheduler.workers[worker].nanny}
                taken.update(chosen)
                ticket.turn.set()

    def _others(self, ticket: _Ticket) -> str:
        holders = [other for other in self.tickets.values() if set(other.workers) & set(ticket.candidates)]
        return f"{len(holders)} other launch{'es' * (len(holders) != 1)}"

    def _excuse(self, ticket: _Ticket, rank: int) -> str:
        worker = ticket.workers[rank]
        state = self.scheduler.workers.get(worker)
        if state is None:
            return f"{worker} is gone"
        others = sum(1 for task in state.processing if not str(task.key).startswith(ticket.gang))
        return f"{worker} is busy with {others} other task{'s' * (others != 1)}" if others else f"{worker} is not ready"
