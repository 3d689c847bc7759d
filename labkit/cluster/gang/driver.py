"""The client's side of one gang, on the client's event loop: queue, start, watch, and clear away.

Everything here is a coroutine, so that a launch costs no thread; `gang.Gang` is the handle for people.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from labkit.cluster.channels import Order, Plan, Report, Switchboard
from labkit.cluster.gang import rank as worker_side
from labkit.cluster.gang.diagnosis import hung, is_echo, verdict
from labkit.cluster.gang.rank import GRACE
from labkit.errors import ClusterError, GangError, LabClosed, LabkitError, Stopped

if TYPE_CHECKING:
    from distributed import Future


SETTLE = 1.0  # seconds in which the cause of a broken collective may come to light
LARGE = 64 * 1024  # bytes; a larger payload goes to each worker once, as Dask data, not through the task graph
PULSE = 0.5  # seconds between two looks at whether the scheduler is still there
ANSWER = 30.0  # seconds in which ranks answer what their gang asks, which may be much to send
PRIORITY = 10  # ranks go before waiting map tasks, since whole gangs wait for the last of their ranks


class Driver:
    """Leads one gang from the queue to its end, and always calls `done(reports, error)`, once."""

    def __init__(
        self,
        client: Any,
        plan: Plan,
        hear: Callable[[dict[str, Any]], None],
        done: Callable[[list[Report], Exception | None], None],
    ) -> None:
        self.client, self.plan, self.hear, self.done = client, plan, hear, done
        self.gang = f"labkit-gang-{uuid.uuid4().hex}"
        self.board = Switchboard.of(client)
        self.board.connect(self.gang, self.receive)
        self.order: Order | None = None
        self.assembled = False
        self.reports: dict[int, Report] = {}  # in order of arrival
        self.lost: dict[int, str] = {}  # rank -> worker
        self.hung: set[int] = set()  # those of the lost ranks whose worker had to be ended
        self.heard: Counter[int] = Counter()  # rank -> messages
        self.grace = GRACE
        self._news: asyncio.Queue[Report | str | ClusterError] = asyncio.Queue()  # a string is a lost worker
        self._futures: list[Future[Report]] = []
        self._data: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self._leading: asyncio.Task[Any] | None = None
        self._stopped = False
        self._broken = False  # by a collective that not all ranks joined
        self._signals: dict[str, Any] = {}
        self._version = 0

    # -- called on the event loop

    def stop(self, grace: float) -> None:
        """Cancel, at whatever point it is."""
        if not self._stopped:
            self._stopped, self.grace = True, grace
            if self._leading is not None:
                self._leading.cancel()

    def receive(self, note: dict[str, Any]) -> None:
        """Take a message of a rank, or of the turnstile."""
        if "lost" in note:
            if note["nanny"]:
                self.board.expect(self.plan.workers)
            self._news.put_nowait(note["lost"])
        else:
            self.heard[note["rank"]] += 1
            self.hear({**note["message"], "rank": note["rank"]})

    async def signal(self, values: dict[str, Any]) -> None:
        """Bring `values` to the ranks; those that have not started get them when they have."""
        self._signals |= values
        self._version += 1
        if self.assembled:
            await self._run_on(self._waiting(), worker_side.receive, self._version, self._signals)

    async def ask(self, function: Callable[..., Any], *args: Any) -> dict[int, Any]:
        """The answers of the ranks that still run, by rank."""
        if self.order is None:
            return {}
        answers = await self._run_on(self._waiting(), function, *args, limit=ANSWER)
        return {rank: answers[worker] for rank, worker in enumerate(self.order.workers) if worker in answers}

    async def lead(self) -> None:
        """Start, watch and clear away."""
        error: Exception | None = None
        try:
            self._leading = asyncio.current_task()
            if self._stopped:
                raise asyncio.CancelledError
            await self._start()
            await self._follow()
        except asyncio.CancelledError:
            stopped = Stopped(f"{self.plan.name} was stopped before its ranks had finished.")
            error = stopped if self._stopped else _gone()
        except LabkitError as caught:
            error = caught
        except OSError as caught:
            error = _gone()
            error.__cause__ = caught
        except Exception as caught:  # noqa: BLE001  whatever it is, nobody may wait for ever
            error = GangError(f"{self.plan.name} could not be led to its end: {type(caught).__name__}: {caught}")
            error.__cause__ = caught
        self._leading = None
        await self._finish(error)

    # -- start

    async def _start(self) -> None:
        plan, client = self.plan, self.client
        start = time.monotonic()
        await self.board.ready(client)
        answer = await self._ask(
            "enter", client=client.id, topic=self.board.topic, ranks=plan.ranks, timeout=plan.timeout
        )
        if "refused" in answer:
            raise GangError(
                f"0 of {plan.ranks} ranks started within {plan.timeout:g} s, because {answer['refused']}:"
                " wait for them, stop them, or launch with a longer timeout=."
            )
        self.order = plan.order(self.gang, self.board.topic, answer["workers"])
        await self._submit(self.order)
        left = max(plan.timeout - (time.monotonic() - start), 0.1)
        self._tasks.append(asyncio.ensure_future(self._assemble(left)))

    async def _submit(self, order: Order) -> None:
        self._data = self.plan.payload
        if len(self.plan.payload) > LARGE:
            self._data = await self.client.scatter(self._data, workers=list(order.workers), broadcast=True, hash=False)
        for rank, worker in enumerate(order.workers):
            future = self.client.submit(
                worker_side.run,
                order,
                rank,
                self._data,
                key=f"{self.gang}-{rank}",
                workers=[worker],
                pure=False,
                retries=0,
                priority=PRIORITY,
            )
            self._futures.append(future)
            self._tasks.append(asyncio.ensure_future(self._collect(rank, future)))

    async def _assemble(self, timeout: float) -> None:
        answer = await self._quietly(self._ask("assembled", timeout=timeout), limit=math.inf)
        if answer is None:  # no scheduler: `_next` finds out
            return
        if not answer["missing"] and not answer["over"]:
            self.assembled = True
            if self._signals:
                await self.signal({})
        elif "in time" in answer["over"]:
            ranks, missing = self.plan.ranks, answer["missing"]
            why = " and ".join(f"rank {rank} is missing, its worker {excuse}" for rank, excuse in missing.items())
            sentence = f"{ranks - len(missing)} of {ranks} ranks started within {self.plan.timeout:g} s: {why};"
            self._news.put_nowait(GangError(f"{sentence} let it finish, or launch with a longer timeout=."))

    async def _collect(self, rank: int, future: Future[Report]) -> None:
        try:
            self._news.put_nowait(await future)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  Dask could not run it, or it was cancelled
            sentence = f"rank {rank} could not be run by Dask ({type(error).__name__}: {error}): launch again."
            trouble = GangError(sentence) if self.client.status == "running" else _gone()
            trouble.__cause__ = error
            self._news.put_nowait(trouble)

    # -- watch

    async def _follow(self) -> None:
        """Return when every rank has; raise at the first sign of trouble, once its cause is known."""
        assert self.order is not None
        deadline = math.inf
        while len(self.reports) < self.plan.ranks and time.monotonic() < deadline:
            news = await self._next(min(PULSE, deadline - time.monotonic()))
            if isinstance(news, ClusterError):
                raise news
            if isinstance(news, Report):
                self.reports[news.rank] = news
            elif news is not None:
                self.lost |= {rank: news for rank in self._waiting() if self.order.workers[rank] == news}
            failures = [report.failure for report in self.reports.values() if report.failure]
            if self.lost or not all(map(is_echo, failures)):
                break
            if failures:
                deadline = min(deadline, time.monotonic() + SETTLE)
        error = verdict(self.plan.name, self.order, list(self.reports.values()), self.lost)
        if error is not None:
            self._broken = not self.lost and all(map(is_echo, failures))
            raise error
        self.assembled = True  # should `_assemble` not have heard yet

    async def _next(self, timeout: float) -> Report | str | ClusterError | None:
        try:
            return await asyncio.wait_for(self._news.get(), max(timeout, 0))
        except TimeoutError:
            if self.client.status != "running":
                raise _gone() from None
            return None

    def _waiting(self) -> list[int]:
        """The ranks that were submitted and have neither reported nor been lost."""
        return [rank for rank in range(len(self._futures)) if rank not in self.reports and rank not in self.lost]

    # -- clear away

    async def _finish(self, error: Exception | None) -> None:
        """Leave the workers ready for the next gang, then say how this one went."""
        try:
            if error is None:
                await self._hear_all()
            elif self._futures and self.client.status == "running":
                stuck = await self._end(error)
                if stuck and self._broken and self.order is not None:
                    self.hung, self.lost = set(stuck), self.lost | stuck
                    error = hung(self.order, stuck)
        finally:
            # `_collect` must not be cancelled: all gathers of a client share one answer, and all would be cancelled.
            for future in self._futures:
                future.release()
            self._data = None
            self.board.disconnect(self.gang)
            self.done(list(self.reports.values()), error)
        await self._quietly(self._ask("leave"))

    async def _hear_all(self) -> None:
        """Messages come in order, and before the report of their rank; this makes sure of it."""
        limit = time.monotonic() + SETTLE
        while any(self.heard[rank] < report.sent for rank, report in self.reports.items()):
            if time.monotonic() > limit:
                return
            await asyncio.sleep(0.005)

    async def _end(self, error: Exception) -> dict[int, str]:
        """End all ranks that still run, and the workers of those that do not leave their own code; return these."""
        assert self.order is not None
        await self._quietly(self._ask("halt", reason="the gang was ended"))
        waiting = self._waiting()
        there = await self._run_on(waiting, worker_side.end, str(error))
        # A rank that has not begun waits behind other tasks of its worker, which must not suffer.
        running = [rank for rank in waiting if there.get(self.order.workers[rank], self.assembled)]
        if running:
            await asyncio.wait([self._tasks[rank] for rank in running], timeout=self.grace)
        stuck = {rank: self.order.workers[rank] for rank in running if not self._tasks[rank].done()}
        if stuck:
            # not client.restart_workers, which would wait another four seconds for the process to end by itself
            killed = await self._quietly(
                self.client.run(worker_side.kill, workers=[*stuck.values()], nanny=True, on_error="ignore")
            )
            self.board.expect(self.plan.workers)
            if left := set(stuck.values()) - set(killed or {}):
                error.add_note(f"A rank still runs on {', '.join(left)}, which has no nanny: restart it by hand.")
        return stuck

    async def _run_on(self, ranks: list[int], function: Callable[..., Any], *args: Any, limit: float = 2.0) -> Any:
        """{worker: answer} of those that answer."""
        assert self.order is not None
        workers = [self.order.workers[rank] for rank in ranks]
        if not workers:
            return {}
        run = self.client.run(function, self.gang, *args, workers=workers, on_error="ignore")
        return await self._quietly(run, limit) or {}

    def _ask(self, question: str, **details: Any) -> Awaitable[Any]:
        """Call the turnstile on the scheduler."""
        answer: Awaitable[Any] = getattr(self.client.scheduler, f"labkit_gang_{question}")(gang=self.gang, **details)
        return answer

    async def _quietly(self, call: Awaitable[Any], limit: float = 2.0) -> Any:
        """None where no answer comes: what is to be ended is then gone, or gets its worker restarted."""
        try:
            return await asyncio.wait_for(call, limit if limit < math.inf else None)
        except (TimeoutError, OSError):
            return None


def _gone() -> LabClosed:
    return LabClosed(
        "the cluster was closed, or its scheduler is gone, while ranks ran: call lk.connect() for a new one."
    )
