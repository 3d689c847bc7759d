"""The gang queue as a client knows it: it registers the queue on the scheduler, and asks how much room there is."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from distributed import Client

from labkit.cluster import deadlines
from labkit.cluster.gang.gang_queue import GangQueue, Others
from labkit.cluster.workers import WorkerInfo, WorkerPool
from labkit.errors import GangError


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

    def others(self, lab: WorkerPool) -> Others:
        """What others do with the workers of a cluster that they use as well."""
        if not (lab.revives or self._registered is None or not self._registered.done()):
            asking = lab.client.scheduler.labkit_gang_others
            with suppress(OSError, TimeoutError):
                return Others(*lab.client.sync(asking, callback_timeout=deadlines.ANSWER))
        return Others()

    def room(self, workers: Sequence[WorkerInfo], lab: WorkerPool) -> int:
        """How many ranks there is room for on these workers and those that are about to be back."""
        expected = self._workers if time.monotonic() < self._until else 0
        return max(len(workers), lab.revives or expected)

    def room_for(self, ranks: int | None, workers: Sequence[WorkerInfo], lab: WorkerPool) -> tuple[int, int]:
        """How many workers the lab has, and how many ranks are to be; raises GangError where it has not enough."""
        there, others = self.room(workers, lab), Others()
        if ranks is None or ranks > there:
            others = self.others(lab)
            there += others.returning
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
        return there, ranks or max(1, there - others.occupied)


def room(lab: WorkerPool) -> int:
    """How many ranks a lab has room for; a worker that has just died is about to be back, and counts.

    Where others compute too, workers that long tasks have are none of them; where they have all, there is room for one,
    which waits and says for whom.
    """
    access = QueueAccess.of(lab.client)
    others = access.others(lab)
    there = access.room(lab.workers, lab) + others.returning
    return max(there - others.occupied, min(there, 1))


def ask(rpc: Any, question: str, gang: str, **details: Any) -> Awaitable[Any]:
    """Put a question to the queue, through a client's or a worker's connection to the scheduler."""
    answer: Awaitable[Any] = getattr(rpc, f"labkit_gang_{question}")(gang=gang, **details)
    return answer
