"""What runs on a worker: one rank of a gang, from its start to a process group that is gone again.

Nothing here is for user code except `tell` and `signals`; both cost microseconds and may be called from any thread of a
rank. torch is imported inside functions, because Dask's scheduler unpickles references into this module.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

import cloudpickle
from distributed import get_worker
from distributed.utils import sync

from labkit.cluster import deadlines
from labkit.cluster.channels import capture_prints, post
from labkit.cluster.gang.diagnosis import RankFailure, RankGone, RankReport
from labkit.cluster.gang.group import GangSpec, ProcessGroup, host_of, listen
from labkit.cluster.gang.queue_access import ask
from labkit.cluster.gang.stacks import stacks_on_request
from labkit.cluster.preparation import leave_random_alone
from labkit.cluster.shipping import unpack
from labkit.cluster.user_modules import note_imported
from labkit.errors import GangError, SettingError

if TYPE_CHECKING:
    from distributed import Nanny, Worker


class Ended(BaseException):
    """Raised inside a rank's own code when its gang is over; a BaseException so that `except Exception` lets it by."""


class Rank:
    """The rank that this worker process is now: one at a time, for a default process group belongs to a process."""

    current: Rank | None = None
    _one = threading.Lock()

    def __init__(self, spec: GangSpec, rank: int, worker: Worker, key: Any) -> None:
        self.spec, self.rank, self.worker, self.key = spec, rank, worker, key
        self.signals: Mapping[str, Any] = {}
        self.kept: Mapping[int, bytes] = {}
        self.leaves: Callable[[], Any] | None = None
        self.version = 0
        self.stage = "start"
        self.ended = ""
        self.over = threading.Event()
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._inside = self._leaving = False

    def __enter__(self) -> Rank:
        if not Rank._one.acquire(timeout=self.spec.timeout):
            raise GangError("the worker still runs a rank of an earlier launch: restart it with lab.restart_workers().")
        self._environment = dict(os.environ)
        leave_random_alone()
        self._group = ProcessGroup()
        self._stacks = ExitStack()
        self._stacks.enter_context(stacks_on_request(self.worker.local_directory))
        Rank.current = self
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._leaving = True
        try:
            self._group.leave(cleanly=self.stage == "done" and not self.ended)
        finally:
            self._stacks.close()
            _restore(self._environment)
            Rank.current = None
            self.over.set()
            Rank._one.release()
            self.worker.loop.add_callback(self._depart)

    # -- the other ranks

    def meet(self) -> None:
        """Wait for all of them at the gang queue, then join them in the process group."""
        ProcessGroup.require_none()
        with listen(host_of(self.worker.address)) if self.rank == 0 else nullcontext() as listener:
            answer = self._ask("arrive", port=listener.getsockname()[1] if listener is not None else None)
            if "refused" in answer:
                follows = answer["refused"] == "lost"
                raise (RankGone if follows else GangError)(f"this rank was not let in: {answer['why']}.")
            self._group.join(self.spec, self.rank, int(answer["port"]), listener)

    async def _depart(self) -> None:
        """Tell the queue, which keeps the workers of a dead client until its ranks are gone."""
        with suppress(OSError, RuntimeError):  # then the scheduler is gone too, or this worker closes
            await ask(self.worker.scheduler, "depart", self.spec.address, rank=self.rank)

    def _ask(self, question: str, **details: Any) -> Any:
        """Ask the queue from this rank's thread."""
        limit = self.spec.timeout + 2 * deadlines.GRACE
        details |= {"rank": self.rank, "callback_timeout": limit}
        # In a context of its own: for a while asyncio keeps timers that have ended, with all of Dask's task.
        asking = partial(sync, self.worker.loop, ask, self.worker.scheduler, question, self.spec.address, **details)
        return Context().run(asking)

    # -- the function

    def call(self, fn: Callable[[], Any]) -> Any:
        """fn(), which `end` may interrupt; no interruption is left over afterwards."""
        with self._lock:
            if self.ended:
                raise Ended(self.ended)
            self._inside = True
        try:
            return fn()
        finally:
            with self._lock:
                self._inside = False
                interrupt(self._thread, None)

    def end(self, reason: str) -> None:
        """Break this rank's connections and raise `Ended` in its own code; called on the worker's event loop."""
        with self._lock:
            if self.ended or self._leaving:
                return
            self.ended = reason
            if self._inside:
                interrupt(self._thread, Ended)
            self._group.cut()

    async def watch(self) -> None:
        """End this rank when nobody wants its result any more: its client died, or released it."""
        tasks, nanny = self.worker.state.tasks, self.worker.nanny  # the nanny is an address
        while self.key in tasks and tasks[self.key].state in ("executing", "long-running"):
            await asyncio.sleep(deadlines.CLIENT_POLL)
        if self.over.is_set():
            return
        self.end("nobody waits for its result any more")
        await asyncio.sleep(deadlines.GRACE)
        if not self.over.is_set() and nanny:
            with suppress(OSError):  # the answer may not outlive this process
                await self.worker.rpc(str(nanny)).kill(timeout=deadlines.EXIT, reason="a rank that would not end")

    def failure(self, error: BaseException) -> RankFailure:
        """Take down why this rank failed, before its group closes and the others fail too."""
        first = not self.ended and self._ask("failed") == self.rank
        return RankFailure.of(error, self.stage, first=first, ended=bool(self.ended), hide=__file__)

    def left(self) -> bytes | None:
        """What this rank leaves behind as it fails; None where that is nothing, or cannot be had any more."""
        if self.leaves is None:
            return None
        try:
            return bytes(cloudpickle.dumps(self.leaves()))
        except Exception:  # noqa: BLE001  that the rank has failed is to be told, and not this
            return None


def run(spec: GangSpec, rank: int, payload: bytes) -> RankReport:
    """The task of one rank; every exception comes back as part of its report, in a form that always unpickles."""
    worker = get_worker()
    here = Rank(spec, rank, worker, worker.get_current_task())
    value, failure, left = None, None, None
    try:
        with here:
            worker.loop.add_callback(here.watch)
            try:
                value = _work(here, payload)
                here.stage = "done"
            except BaseException as error:  # noqa: BLE001  SystemExit and Ended too: a rank always reports
                failure = here.failure(error)
                left = here.left()
    except GangError as error:  # another rank is in its place
        failure = here.failure(error)
    if failure is not None:
        _free_memory()
    return RankReport(rank, value, failure, left)


def _work(here: Rank, payload: bytes) -> bytes:
    here.stage = "load"
    import torch  # noqa: F401  (this takes seconds the first time; now, before the ranks wait for each other)

    # `import torch.distributed` as the first of all would lock in another order than a thread that imports torch at
    # the same time; Python then lets one of them see a half-made torch, which aborts the process.
    call, _ = unpack(payload)
    note_imported()
    here.stage = "start"
    here.meet()
    here.stage = "run"
    with capture_prints(here.spec.address, f"[rank {here.rank}]"):
        value = here.call(call)
    here.stage = "return"
    return bytes(cloudpickle.dumps(value))


def _free_memory() -> None:
    """Give back what a failed rank held in reference cycles, such as an optimiser with a schedule, and on its GPU."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def interrupt(thread: int, error: type[BaseException] | None) -> None:
    """Have `error` raised at the thread's next bytecode, or withdraw what was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error and ctypes.py_object(error))


def _restore(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


# -- for functions that run as a rank


def tell(message: Mapping[str, Any]) -> None:
    """Send plain data from a rank to `gang.events`, in order; never waits.

    Raises GangError outside a rank, SettingError for what is not plain data (numbers, strings, bytes, lists, dicts).

    >>> def fn():
    ...     rank.tell({"step": 1, "loss": 0.5})
    """
    here = _here("tell")
    try:
        post(here.worker, here.spec.address, rank=here.rank, message=dict(message))
    except TypeError as error:
        raise SettingError(f"tell() sends numbers, strings, bytes, lists and dicts, not this: {message!r}.") from error


def signals() -> Mapping[str, Any]:
    """What `gang.signal` last said to this gang, {} at first; a look into this process, no network.

    Raises GangError outside a rank.
    """
    return _here("signals").signals


def keep(data: Mapping[int, bytes]) -> None:
    """Hold these bytes, by number, for whoever asks the gang for them with `fetch`, in place of those held before.

    Raises GangError outside a rank.
    """
    _here("keep").kept = dict(data)


def leave(make: Callable[[], Any]) -> None:
    """Should this rank fail or be ended, make() is called then, and its gang has in `left` what it returns.

    Raises GangError outside a rank.
    """
    _here("leave").leaves = make


def own_host() -> str:
    """The address of this rank's worker, where the other ranks reach it.

    Raises GangError outside a rank.
    """
    return host_of(_here("own_host").worker.address)


def _here(name: str) -> Rank:
    if Rank.current is None:
        raise GangError(f"{name}() works only inside a function that lab.launch runs as a rank.")
    return Rank.current


# -- called by the client through client.run, on the event loop of the worker, or of its nanny


def receive(gang: str, version: int, signals: Mapping[str, Any]) -> None:
    """Keep the newest signals; calls may overtake each other on the way."""
    here = _rank_of(gang)
    if here is not None and version > here.version:
        here.version, here.signals = version, signals


def fetch(gang: str, number: int) -> bytes | None:
    """What this worker's rank of `gang` keeps under `number`; None where there is nothing."""
    here = _rank_of(gang)
    return None if here is None else here.kept.get(number)


def end(gang: str, reason: str) -> bool:
    """Tell this worker's rank of `gang` to end; False where there is none."""
    here = _rank_of(gang)
    if here is not None:
        here.end(reason)
    return here is not None


async def kill(dask_worker: Nanny) -> bool:
    """End the worker of this nanny, which then starts a new one."""
    await dask_worker.kill(timeout=deadlines.EXIT, reason="a rank that would not end")
    return True


def _rank_of(gang: str) -> Rank | None:
    here = Rank.current
    return here if here is not None and here.spec.address == gang else None
