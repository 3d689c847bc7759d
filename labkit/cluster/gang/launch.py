"""`launch`: one function as the ranks of one torch.distributed process group, one rank per Dask worker.

Here is the client's side; rank.py runs on workers, gang_queue.py on the scheduler, and diagnosis.py says what failed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from labkit.checks import number, whole
from labkit.cluster import deadlines
from labkit.cluster.channels import Inbox, Note
from labkit.cluster.gang import rank as worker_side
from labkit.cluster.gang.diagnosis import RankFailure, RankReport, diagnose, hung
from labkit.cluster.gang.gang_queue import Holder, Lack, waiting
from labkit.cluster.gang.group import GangSpec
from labkit.cluster.gang.payload import placed
from labkit.cluster.gang.queue_access import QueueAccess, ask
from labkit.cluster.gang.stacks import place_of, stack
from labkit.cluster.shipping import pack
from labkit.cluster.workers import WorkerPool
from labkit.errors import ClusterError, GangError, LabClosed, LabkitError, SettingError, Stopped
from labkit.text import some

if TYPE_CHECKING:
    from distributed import Future

_Arrival = RankReport | str | ClusterError | tuple[ClusterError]  # a string is a lost worker
_REMEDY = {
    "busy": "wait for them, stop them, or launch with a longer timeout=",
    "missing": "launch with fewer ranks=, start workers by lab.scale(), or free them by lab.restart_workers()",
}
PRIORITY = 10  # ranks go before waiting map tasks, since whole gangs wait for the last of their ranks


class Mailbox(queue.SimpleQueue[dict[str, Any]]):
    """What ranks said with `rank.tell`, each message with its "rank"; in order per rank, safe from any thread."""

    def drain(self) -> list[dict[str, Any]]:
        """The messages that arrived since the last call; never waits."""
        messages = []
        with suppress(queue.Empty):
            while True:
                messages.append(self.get_nowait())
        return messages


class Gang:
    """The handle of a running `lab.launch`; the ranks work in the background, `result` waits for them.

    `ranks` is their number, and `events` the `Mailbox` of what they say with `labkit.cluster.gang.rank.tell`.

    >>> import torch.distributed as dist
    >>> from labkit.cluster.gang import rank
    >>> def fn():
    ...     print("hello")
    ...     rank.tell({"half": dist.get_rank() / 2})
    ...     return dist.get_world_size()
    >>> gang = lab.launch(fn, ranks=2)                  # doctest: +SKIP
    >>> gang                                            # doctest: +SKIP
    Gang: fn as 2 ranks, starting
    >>> gang.result()                                   # doctest: +SKIP
    [rank 0] hello
    [rank 1] hello
    [2, 2]
    >>> gang.events.drain()                             # doctest: +SKIP
    [{'half': 0.0, 'rank': 0}, {'half': 0.5, 'rank': 1}]
    """

    def __init__(
        self,
        lab: WorkerPool,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        ranks: int | None,
        timeout: float,
        part_of: str = "",
    ) -> None:
        if not callable(fn):
            raise SettingError(f"{fn!r} is not a function: give launch the function, and its arguments after it.")
        lab.require_trusted()
        self._timeout = number(timeout, "timeout", above=True, unit="seconds")
        ranks = None if ranks is None else whole(ranks, "ranks")
        workers = lab.workers
        self.part_of, self.since = part_of, time.time()  # the title of the run that it works for
        self.waits = ""  # what it waits for before it can start, in words
        self.make_way = lab.make_way
        self._queue, self._client = QueueAccess.of(lab.client), lab.client
        self._workers, self.ranks = self._queue.room_for(ranks, workers, lab)
        self.events = Mailbox()
        self._name = getattr(fn, "__name__", type(fn).__name__)
        self._payload: Any = pack(partial(fn, *args, **kwargs), self._name, lab.settings)
        self._gpus = {worker.address: worker.gpus[0] for worker in workers if worker.gpus}
        self._inbox = Inbox(lab.client, self._receive)
        self._address = self._inbox.address  # which names the gang
        self._spec: GangSpec | None = None  # once it has workers
        self._signals: dict[str, Any] = {}
        self._version, self._assembled = 0, False
        self._futures: list[Future[RankReport]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._arrived: asyncio.Queue[_Arrival] = asyncio.Queue()
        self._reports: dict[int, RankReport] = {}  # in order of arrival
        self.left: dict[int, bytes] = {}  # pickled, what ranks that failed or were ended have left behind
        self._lost: dict[int, str] = {}  # rank -> worker
        self._hung: dict[int, str] = {}  # rank -> where
        self._leading: asyncio.Task[Any] | None = None
        self._stopped, self._grace = False, deadlines.GRACE
        self._over = threading.Event()
        self._error: Exception | None = None
        self._values: list[Any] | None = None
        lab.track(self)
        asyncio.run_coroutine_threadsafe(self._lead(), lab.client.loop.asyncio_loop)

    # -- its state

    @property
    def workers(self) -> tuple[str, ...]:
        """The addresses of the workers, by rank; () while the gang waits for its turn."""
        return self._spec.workers if self._spec else ()

    @property
    def started(self) -> bool:
        """True once every rank has started; before that, none is inside the function."""
        return self._assembled

    @property
    def title(self) -> str:
        """What it is."""
        return f"Gang: {self._name} as {some(self.ranks, 'rank')}"

    @property
    def reached(self) -> str:
        """How far it is, in words."""
        return "running" if self.started else self.waits or "starting"

    abandoned = False  # a run gives way, and takes its gang along

    @property
    def lost(self) -> Mapping[int, str]:
        """The ranks whose worker died, with its address."""
        return self._lost

    @property
    def hung(self) -> Mapping[int, str]:
        """Where in their code those of the lost ranks were, "" if unknown, that kept others waiting in a collective."""
        return self._hung

    @property
    def done(self) -> bool:
        """True when the gang has ended, well or badly."""
        if not self._over.is_set() and self._client.status in ("closing", "closed"):
            self._conclude(_gone())  # a closed client has no event loop any more that could say so
        return self._over.is_set()

    def __repr__(self) -> str:
        return f"{self.title}, {'failed' if self._error else 'done' if self.done else self.reached}"

    # -- its end

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the gang has ended or `timeout` seconds have passed; True if it has ended."""
        limit = math.inf if timeout is None else time.monotonic() + timeout
        while not self.done and time.monotonic() < limit:
            self._over.wait(min(deadlines.TICK, max(limit - time.monotonic(), 0)))
        return self.done

    def result(self, timeout: float | None = None) -> list[Any]:
        """What the function returned on every rank, by rank; shows what the ranks print while it waits.

        Raises GangError for the first rank that failed (its own exception is the cause), WorkerLost for a worker that
        died, LabClosed when the cluster went away, Stopped after `stop`, and TimeoutError when `timeout` seconds pass,
        which leaves the ranks running. Ctrl-C stops them.
        """
        limit = math.inf if timeout is None else time.monotonic() + timeout
        try:
            while not self.wait(min(deadlines.TICK, max(limit - time.monotonic(), 0))) and time.monotonic() < limit:
                self.show()
        except KeyboardInterrupt:
            self.stop()
            self._over.wait(deadlines.GRACE + 2)
            raise
        self.show()
        if not self.done:
            raise TimeoutError(f"{self._name} still runs after {timeout:g} s: call result() again, or stop().")
        if self._error is not None:
            raise self._error
        if self._values is None:
            self._values = [self._reports[rank].result() for rank in range(self.ranks)]
        return self._values

    def stop(self, grace: float = deadlines.GRACE) -> None:
        """End all ranks; returns at once, and `result` then raises Stopped.

        Their connections break, and what they are doing is interrupted; the worker of a rank that does not leave its
        own code within `grace` seconds is restarted.
        """
        self._call_soon(self._stop, grace)

    def cancel(self) -> None:
        """What a lab does to its gangs when it closes: end all ranks; `result` then raises LabClosed."""
        self.stop()
        self._conclude(_gone())

    def show(self) -> None:
        """Print what the ranks have printed since the last call, each line led by its "[rank k]"."""
        for line in self._inbox.printed():
            print(line)

    def signal(self, values: Mapping[str, Any]) -> None:
        """Add `values` to what `rank.signals()` returns on every rank, within milliseconds; returns at once."""
        self._call_soon(self._signal, dict(values))

    def ask(self, function: Callable[..., Any], *args: Any) -> concurrent.futures.Future[dict[int, Any]]:
        """What function(gang, *args) returns on the event loop of each rank's worker, by rank, of those that answer."""
        return asyncio.run_coroutine_threadsafe(self._answers(function, *args), self._client.loop.asyncio_loop)

    def _call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        if not self.done:
            self._client.loop.add_callback(function, *args)

    def _conclude(self, error: Exception | None) -> None:
        if not self._over.is_set():
            if error is not None:
                error.__traceback__ = None  # how labkit came upon it helps nobody; the cause has the rank's own
            self._error = error
            self._inbox.close()  # every line has come: they travel in order with the reports
            self._over.set()

    # -- from the queue to the end, on the client's event loop, so that a launch costs no thread

    async def _lead(self) -> None:
        error: Exception | None = None
        try:
            self._leading = asyncio.current_task()
            if self._stopped:
                raise asyncio.CancelledError
            await self._start()
            await self._follow()
        except asyncio.CancelledError:
            stopped = Stopped(f"{self._name} was stopped before its ranks had finished.")
            error = stopped if self._stopped else _gone()
        except LabkitError as caught:
            error = caught
        except OSError as caught:
            error = _gone(caught)
        except Exception as caught:  # noqa: BLE001  whatever it is, nobody may wait for ever
            error = GangError(f"{self._name} could not be led to its end: {type(caught).__name__}: {caught}")
            error.__cause__ = caught
        self._leading = None
        await self._finish(error)

    async def _start(self) -> None:
        await self._queue.ready(self._client)
        answer = await self._ask_queue(
            "enter", client=self._client.id, ranks=self.ranks, timeout=self._timeout, title=self.part_of or self.title
        )
        if "refused" in answer:
            why = f"0 of {self.ranks} ranks started within {self._timeout:g} s, because {answer['why']}"
            raise GangError(f"{why}: {_REMEDY.get(answer['refused'], 'launch again')}.")
        self.waits = ""
        self._spec = GangSpec.on(self._address, answer["workers"], self._gpus, self._timeout)
        try:
            self._payload = await placed(self._client, self._payload, self._spec.workers[0], self._timeout)
        except GangError as error:  # a lost worker is heard of in a moment
            self._arrived.put_nowait((error,))
            return
        for rank, worker in enumerate(self._spec.workers):
            future = self._client.submit(
                worker_side.run,
                self._spec,
                rank,
                self._payload,
                key=f"{self._address}-{rank}",
                workers=[worker],
                pure=False,
                retries=0,
                priority=PRIORITY,
            )
            self._futures.append(future)
            self._tasks.append(asyncio.ensure_future(self._collect(rank, future)))

    async def _collect(self, rank: int, future: Future[RankReport]) -> None:
        try:
            report = await future
            self.left |= {rank: report.left} if report.left is not None else {}
            self._arrived.put_nowait(report)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  Dask could not run it, or it was cancelled
            sentence = f"rank {rank} could not be run by Dask ({type(error).__name__}: {error}): launch again."
            trouble = GangError(sentence) if self._client.status == "running" else _gone()
            trouble.__cause__ = error
            self._arrived.put_nowait((trouble,))

    async def _follow(self) -> None:
        """Return when every rank has; raise at the first sign of trouble, once its cause is known."""
        assert self._spec is not None
        deadline, trouble = math.inf, None
        while len(self._reports) < self.ranks and time.monotonic() < deadline:
            left = min(deadlines.SCHEDULER_POLL, deadline - time.monotonic())
            match await self._quietly(self._arrived.get(), max(left, 0)):
                case None if self._client.status != "running":
                    raise _gone()
                case ClusterError() as error:
                    raise error
                case (ClusterError() as error,):
                    trouble = trouble or error
                case RankReport() as report:
                    self._reports[report.rank] = report
                case str() as lost:
                    self._lost |= {rank: lost for rank in self._waiting() if self._spec.workers[rank] == lost}
            if self._lost or (self._failures and not self._unexplained()):
                break
            if trouble or self._failures:
                deadline = min(deadline, time.monotonic() + deadlines.SETTLE)
        found = diagnose(self._name, self._spec, list(self._reports.values()), self._lost) or trouble
        if found is not None:
            raise found

    @property
    def _failures(self) -> list[RankFailure]:
        return [report.failure for report in self._reports.values() if report.failure]

    def _unexplained(self) -> bool:
        """Whether ranks failed only because others did, of which nothing is known."""
        return bool(self._failures) and not self._lost and all(failure.follows for failure in self._failures)

    async def _finish(self, error: Exception | None) -> None:
        """Leave the workers ready for the next gang, then say how this one went."""
        try:
            if error is not None and self._futures and self._client.status == "running":
                unexplained = self._unexplained() and not self._stopped
                stuck, stacks = await self._end_ranks(error, ask_where=unexplained)
                if stuck and unexplained and self._spec is not None:
                    where = {rank: stacks.get(worker, []) for rank, worker in stuck.items()}
                    self._lost |= stuck
                    self._hung = {rank: place_of(lines) for rank, lines in where.items()}
                    error = hung(self._spec, where)
        finally:
            # `_collect` must not be cancelled: all gathers of a client share one answer, and all would be cancelled.
            for future in self._futures:
                future.release()
            self._payload = None
            self._conclude(error)
        await self._quietly(self._ask_queue("leave"))

    async def _end_ranks(self, error: Exception, ask_where: bool) -> tuple[dict[int, str], dict[str, list[str]]]:
        """End all ranks that still run, and the workers of those that do not leave their own code.

        Returns these, and where each worker was if that is asked.
        """
        stacks: dict[str, list[str]] = {}
        assert self._spec is not None
        await self._quietly(self._ask_queue("halt"))
        waiting = self._waiting()
        there = await self._run_on(waiting, worker_side.end, str(error))
        # A rank that has not begun waits behind other tasks of its worker, which must not suffer.
        running = [rank for rank in waiting if there.get(self._spec.workers[rank], self._assembled)]
        if last := [self._tasks[rank] for rank in (waiting if self._assembled else running)]:
            await asyncio.wait(last, timeout=self._grace)  # one that has ended by itself has yet to be heard of
        stuck = {rank: self._spec.workers[rank] for rank in running if not self._tasks[rank].done()}
        if stuck:
            on_nannies: dict[str, Any] = {"workers": [*stuck.values()], "nanny": True, "on_error": "ignore"}
            if ask_where:
                stacks = await self._quietly(self._client.run(stack, **on_nannies)) or {}
            # not client.restart_workers, which would wait another four seconds for the process to end by itself
            killed = await self._quietly(self._client.run(worker_side.kill, **on_nannies))
            self._queue.expect(self._workers)
            if left := set(stuck.values()) - set(killed or {}):
                error.add_note(f"A rank still runs on {', '.join(left)}, which has no nanny: restart it by hand.")
        return stuck, stacks

    # -- also there, at any time

    def _receive(self, note: Note) -> None:
        """Take a message of a rank, or what the queue has to say of the gang."""
        match note:
            case {"rank": rank, "message": message}:
                self.events.put({**message, "rank": rank})
            case {"assembled": True}:
                self._assembled, self.waits = True, ""
                self._tasks.append(asyncio.ensure_future(self._signal({})))
            case {"missing": excuses}:
                begun = f"{self.ranks - len(excuses)} of {self.ranks} ranks started within {self._timeout:g} s"
                why = f"{' and '.join(excuses)}; let it finish, or launch with a longer timeout=."
                self._arrived.put_nowait(GangError(f"{begun}: {why}"))
            case {"holders": holders, "lack": lack}:
                self.waits = waiting((Holder(*each) for each in holders), lack and Lack(*lack))
            case {"lost": worker, "returns": returns}:
                if returns:
                    self._queue.expect(self._workers)
                self._arrived.put_nowait(worker)

    def _stop(self, grace: float) -> None:
        """Cancel, at whatever point it is."""
        if not self._stopped:
            self._stopped, self._grace = True, grace
            if self._leading is not None:
                self._leading.cancel()

    async def _signal(self, values: dict[str, Any]) -> None:
        """Bring `values` to the ranks; those that have not started get them when they have."""
        self._signals |= values
        self._version += 1
        if self._assembled and self._signals:
            await self._run_on(self._waiting(), worker_side.receive, self._version, self._signals)

    async def _answers(self, function: Callable[..., Any], *args: Any) -> dict[int, Any]:
        answers = await self._run_on(self._waiting(), function, *args, limit=deadlines.ANSWER)
        return {rank: answers[worker] for rank, worker in enumerate(self.workers) if worker in answers}

    def _waiting(self) -> list[int]:
        """The ranks that have neither reported nor been lost."""
        return [rank for rank in range(len(self.workers)) if rank not in self._reports and rank not in self._lost]

    async def _run_on(self, ranks: list[int], function: Callable[..., Any], *args: Any, limit: float = 2.0) -> Any:
        """{worker: answer} of those that answer."""
        workers = [self.workers[rank] for rank in ranks]
        if not workers:
            return {}
        run = self._client.run(function, self._address, *args, workers=workers, on_error="ignore")
        return await self._quietly(run, limit) or {}

    def _ask_queue(self, question: str, **details: Any) -> Awaitable[Any]:
        return ask(self._client.scheduler, question, self._address, **details)

    @staticmethod
    async def _quietly(call: Awaitable[Any], limit: float = 2.0) -> Any:
        """None where no answer comes: what is to be ended is then gone, or gets its worker restarted."""
        try:
            return await asyncio.wait_for(call, limit)
        except (TimeoutError, OSError):
            return None


def _gone(cause: BaseException | None = None) -> LabClosed:
    closed = LabClosed(
        "the cluster was closed, or its scheduler is gone, while ranks ran: call lk.connect() for a new one."
    )
    closed.__cause__ = cause
    return closed
