"""`launch`: one function as the ranks of one torch.distributed process group, one rank per Dask worker.

That is all a gang knows. Here is its handle; driver.py leads it from the client's event loop, rank.py runs on the
workers, turnstile.py on the scheduler, and verdict.py finds the sentence for what went wrong. The traffic of the ranks
is neither encrypted nor authenticated, even where Dask's own is: torch offers nothing of the kind.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import pickle
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from labkit.checks import number, whole
from labkit.cluster.channels import Echo, Plan, Report, Switchboard
from labkit.cluster.gang.driver import Driver
from labkit.cluster.gang.rank import GRACE
from labkit.cluster.shipping import pack
from labkit.errors import GangError, LabClosed, SettingError
from labkit.text import some

if TYPE_CHECKING:
    from labkit.cluster.workers import WorkerInfo, WorkerPool


_TICK = 0.1  # seconds between two looks at the printed lines, and at whether the lab is still open


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
    """The handle of a running `launch`; it works in the background, `result` waits for it.

    `ranks` is their number, `events` a `Mailbox`.
    """

    def __init__(self, lab: WorkerPool, plan: Plan, echo: Echo | None) -> None:
        self.ranks = plan.ranks
        self.events = Mailbox()
        self._client = lab.client
        self._name = plan.name
        self._echo = echo
        self._over = threading.Event()
        self._reports: list[Report] = []
        self._error: Exception | None = None
        self._values: list[Any] | None = None
        self._driver = Driver(lab.client, plan, self.events.put, self._done)
        asyncio.run_coroutine_threadsafe(self._driver.lead(), lab.client.loop.asyncio_loop)

    # -- its state

    @property
    def workers(self) -> tuple[str, ...]:
        """The addresses of the workers, by rank; () while the gang waits for its turn."""
        return self._driver.order.workers if self._driver.order else ()

    @property
    def started(self) -> bool:
        """True once every rank has started; before that, none is inside the function."""
        return self._driver.assembled

    @property
    def lost(self) -> Mapping[int, str]:
        """The ranks whose worker died, with its address."""
        return dict(self._driver.lost)

    @property
    def hung(self) -> Collection[int]:
        """Those of the lost ranks that kept others waiting in a collective until their worker was ended."""
        return frozenset(self._driver.hung)

    @property
    def done(self) -> bool:
        """True when the gang has ended, well or badly."""
        self._look()
        return self._over.is_set()

    def __repr__(self) -> str:
        state = "done" if self.done else "running" if self.started else "starting"
        return f"Gang: {self._name} as {some(self.ranks, 'rank')}, {'failed' if self._error else state}"

    # -- its end

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the gang has ended or `timeout` seconds have passed; True if it has ended."""
        limit = math.inf if timeout is None else time.monotonic() + timeout
        while not self.done and time.monotonic() < limit:
            self._over.wait(min(_TICK, max(limit - time.monotonic(), 0)))
        return self.done

    def result(self, timeout: float | None = None) -> list[Any]:
        """What the function returned on every rank, by rank; shows what the ranks print while it waits.

        Raises GangError for the first rank that failed (its own exception is the cause), WorkerLost for a worker that
        died, LabClosed when the cluster went away, Stopped after `stop`, and TimeoutError when `timeout` seconds pass,
        which leaves the ranks running. Ctrl-C stops them.
        """
        limit = math.inf if timeout is None else time.monotonic() + timeout
        try:
            while not self.wait(min(_TICK, max(limit - time.monotonic(), 0))) and time.monotonic() < limit:
                self.show()
        except KeyboardInterrupt:
            self.stop()
            self._over.wait(GRACE + 2)
            raise
        self.show()
        if not self.done:
            raise TimeoutError(f"{self._name} still runs after {timeout:g} s: call result() again, or stop().")
        if self._error is not None:
            raise self._error
        if self._values is None:
            self._values = [_unpack(report) for report in sorted(self._reports, key=lambda report: report.rank)]
        return self._values

    def stop(self, grace: float = GRACE) -> None:
        """End all ranks; returns at once, and `result` then raises Stopped.

        Their connections break, and what they are doing is interrupted; the worker of a rank that does not leave its
        own code within `grace` seconds is restarted.
        """
        self._call_soon(self._driver.stop, grace)

    def cancel(self) -> None:
        """What a lab does to its gangs when it closes."""
        self._call_soon(self._driver.stop, GRACE)
        self._done([], _closed())

    def show(self) -> None:
        """Print what the ranks have printed since the last call, each line led by its "[rank k]"."""
        for line in self._echo.drain() if self._echo is not None else ():
            print(line)

    def signal(self, values: Mapping[str, Any]) -> None:
        """Add `values` to what `rank.signals()` returns on every rank, within milliseconds; returns at once."""
        self._call_soon(self._driver.signal, dict(values))

    def ask(self, function: Callable[..., Any], *args: Any) -> concurrent.futures.Future[dict[int, Any]]:
        """What function(gang, *args) returns on the event loop of each rank's worker, by rank, of those that answer."""
        loop = self._client.loop.asyncio_loop
        return asyncio.run_coroutine_threadsafe(self._driver.ask(function, *args), loop)

    # -- inside

    def _call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        if not self.done:
            self._client.loop.add_callback(function, *args)

    def _done(self, reports: list[Report], error: Exception | None) -> None:
        if not self._over.is_set():
            self._reports, self._error = reports, error
            if error is not None:
                error.__traceback__ = None  # how labkit came upon it helps nobody; the cause has the rank's own
            if self._echo is not None:
                self._echo.close()  # every line has come: they travel in order with the reports
            self._over.set()

    def _look(self) -> None:
        """A closed client has no event loop any more that could say so."""
        if not self._over.is_set() and self._client.status in ("closing", "closed"):
            self._done([], _closed())


def launch(
    lab: WorkerPool,
    fn: Callable[..., Any],
    *args: Any,
    ranks: int | None = None,
    timeout: float = 60.0,
    echo: bool = True,
    **kwargs: Any,
) -> Gang:
    """Run fn(*args, **kwargs) as `ranks` ranks (one per worker by default) of one process group; returns at once.

    Functions from PyTorch's tutorials work as they stand, less their set-up of the process group. `timeout` (seconds)
    limits the wait for all ranks to start, and every collective. Backend: nccl where each rank has its own GPU, else
    gloo. With `echo`, `Gang.result` shows what the ranks print.
    Raises GangError for more ranks than workers, SettingError for arguments out of range or that cannot be sent.

    >>> def fn(x):                                                # doctest: +SKIP
    ...     t = torch.tensor(float(dist.get_rank() + x))
    ...     dist.all_reduce(t)
    ...     return t.item()
    >>> lab.launch(fn, 1, ranks=2).result()                       # doctest: +SKIP
    [3.0, 3.0]
    """
    name = getattr(fn, "__name__", type(fn).__name__)
    if not callable(fn):
        raise SettingError(f"{fn!r} is not a function: give launch the function, and its arguments after it.")
    timeout = number(timeout, "timeout", above=True, unit="seconds")
    ranks = None if ranks is None else whole(ranks, "ranks")
    workers = lab.workers
    there = max(len(workers), Switchboard.of(lab.client).expected())
    _require_room(workers, there, ranks)
    listener = Echo(lab.client) if echo else None
    plan = Plan(
        name=name,
        payload=_pack(name, fn, args, kwargs),
        ranks=ranks or there,
        workers=there,
        gpus={worker.address: worker.gpus[0] for worker in workers if worker.gpus},
        timeout=timeout,
        echo_topic=listener.topic if listener is not None else None,
    )
    gang = Gang(lab, plan, listener)
    lab.track(gang)
    return gang


def room(lab: WorkerPool) -> int:
    """How many ranks the lab has room for; a worker that has just died is about to be back, and counts."""
    return max(len(lab.workers), Switchboard.of(lab.client).expected())


def _require_room(workers: Sequence[WorkerInfo], there: int, ranks: int | None) -> None:
    if not there:
        raise GangError("the lab has no workers: wait until some have come, or start some with lk.connect(workers=2).")
    if ranks is not None and ranks > there:
        raise GangError(
            f"{ranks} ranks need {ranks} workers, but the lab has {there}:"
            f" ask for ranks={there}, or start the lab with lk.connect(workers={ranks})."
        )
    if any(worker.address.startswith("inproc://") for worker in workers):
        raise GangError("the workers are threads of this process, which can be one rank only: connect with processes.")


def _pack(name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    call = partial(fn, *args, **kwargs)
    setattr(call, "__name__", name)  # noqa: B010  so that an error names the function; a partial has no such attribute
    return pack(call)


def _unpack(report: Report) -> Any:
    try:
        return pickle.loads(report.value or b"")
    except Exception as error:  # unpickling runs code of whatever was returned
        raise GangError(
            f"what rank {report.rank} returned cannot be read here ({error}):"
            " return CPU tensors, numbers, lists or dicts."
        ) from error


def _closed() -> LabClosed:
    return LabClosed("the lab was closed while ranks ran: call lk.connect() for a new one.")
