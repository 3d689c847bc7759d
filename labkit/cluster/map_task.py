"""One item of a map on a worker: its value, or what went wrong, in a form that always reaches the kernel.

Dask loses what it cannot pickle, and its client stumbles over long tracebacks. So values are pickled here, exceptions
travel as a report of plain data, and what ends a whole worker is written down before.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple

import cloudpickle
from distributed import Client, get_worker

from labkit.cluster import deadlines
from labkit.cluster.channels import capture_prints
from labkit.cluster.gang.diagnosis import RankFailure
from labkit.cluster.gang.rank import Ended, interrupt, kill
from labkit.cluster.kernel_settings import KernelSettings
from labkit.cluster.preparation import wait_for_torch
from labkit.cluster.shipping import PLAIN, opened, unpack
from labkit.cluster.user_modules import note_imported

# A worker's clock is corrected by Dask's estimate only when it is plainly wrong: set clocks agree better than that.
_CLOCK_ERROR = 0.1


class _Fields(NamedTuple):
    value: Any
    worker: str
    start: float
    finish: float


class ItemResult(_Fields):
    """What comes back for one item; times are seconds of the scheduler's clock.

    Its value is pickled with it, or replaced by an `Unsent` where it cannot be; big arrays stay out of band.
    """

    __slots__ = ()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        value, *rest = self
        if type(value) in PLAIN:
            return ItemResult, tuple(self)
        buffers: list[pickle.PickleBuffer] = []
        try:
            apart = buffers.append if protocol >= 5 else None
            data = cloudpickle.dumps(value, protocol=5, buffer_callback=apart)
        except Exception as error:  # noqa: BLE001  pickling runs code of whatever was returned
            unsent = Unsent(type(value).__name__, _in_words(error), there=False)
            return ItemResult, (unsent, *rest)
        return _received, (data, buffers, *rest)


class Unsent(NamedTuple):
    """In place of a value that could not be pickled, or could be and not be read `there`, in the kernel."""

    kind: str
    why: str
    there: bool


def _received(data: bytes, buffers: list[Any], *rest: Any) -> ItemResult:
    try:
        value = pickle.loads(data, buffers=buffers)
    except Exception as error:  # noqa: BLE001  unpickling runs code of whatever was returned
        value = Unsent("something", _in_words(error), there=True)
    return ItemResult(value, *rest)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


class ItemFailed(Exception):
    """What fn raised, on this worker."""

    def __init__(self, worker: str, failure: RankFailure) -> None:
        super().__init__(worker, failure)
        self.worker, self.failure = worker, failure

    def __str__(self) -> str:
        return self.failure.summary  # all that Dask looks at, which would cut a long one


class Call:
    """fn as it runs on a worker: prints are sent home, and the value comes back with the times of its computation."""

    def __init__(self, payload: bytes | None, inbox: str) -> None:
        self.payload = payload
        self.inbox = inbox  # which names the job

    def __reduce__(self) -> tuple[Any, ...]:
        return Call, (self.payload, self.inbox)

    def __call__(self, item: Any, payload: bytes | None = None) -> ItemResult:
        """Compute fn(item); raises ItemFailed for whatever fn raises."""
        worker = get_worker()
        wait_for_torch()  # before the function is unpickled, which may import it too
        name = str(worker.name)
        delay = worker.scheduler_delay if abs(worker.scheduler_delay) > _CLOCK_ERROR else 0.0
        failed: BaseException
        try:
            fn, settings = _unpacked(payload or self.payload or b"")
            settings.apply()  # another job's items may have been here in between
            item = item if type(item) in PLAIN else opened(item)
            with capture_prints(self.inbox, f"[worker {name}]"), _noted(self.inbox, str(worker.get_current_task())):
                start, tick = time.time() + delay, time.perf_counter()
                value = fn(item)
                if inspect.iscoroutine(value):
                    value = asyncio.run(value)
                finish = start + time.perf_counter() - tick
            return ItemResult(value, name, start, finish)
        except SystemExit as error:  # it would end the worker
            failed = RuntimeError(f"the function called sys.exit({error.code})").with_traceback(error.__traceback__)
        except BaseException as error:  # noqa: BLE001  Ended too, which nobody waits for
            failed = error
        finally:
            note_imported()
        ended = isinstance(failed, Ended)
        # not inside of `except`: as its context the exception itself would travel along, as Dask pickles it
        raise ItemFailed(name, RankFailure.of(failed, "run", first=True, ended=ended, hide=__file__))


@lru_cache(maxsize=16)
def _unpacked(payload: bytes) -> tuple[Callable[[Any], Any], KernelSettings]:
    return unpack(payload)


# -- which items this process computes now: to interrupt them, and to know them when it is gone

RECORD = "LABKIT_ITEMS"  # the variable that names the file for them, where the worker's nanny reads it
_SLOT = 256  # bytes for each thread

_computing: dict[int, str] = {}  # thread -> job
_lock = threading.Lock()
_slots: dict[int, int] = {}  # thread -> slot
_record: int | None = None  # the file's descriptor


@contextmanager
def _noted(job: str, key: str) -> Iterator[None]:
    thread = threading.get_ident()
    slot = _slots.setdefault(thread, len(_slots)) * _SLOT
    with _lock:
        _computing[thread] = job
    if record := _opened():
        os.pwrite(record, key.encode()[:_SLOT].ljust(_SLOT, b"\0"), slot)
    try:
        yield
    finally:
        with _lock:
            _computing.pop(thread, None)
            interrupt(thread, None)
        if record:
            os.pwrite(record, bytes(_SLOT), slot)


def _opened() -> int | None:
    global _record
    if _record is None and RECORD in os.environ:
        with suppress(OSError):
            _record = os.open(os.environ[RECORD], os.O_RDWR)
    return _record


def recorded(file: int) -> list[str]:
    """The keys of the tasks that a process had begun and not ended; forgets them."""
    data = os.pread(file, os.fstat(file).st_size, 0)
    os.ftruncate(file, 0)
    slots = (data[at : at + _SLOT].rstrip(b"\0") for at in range(0, len(data), _SLOT))
    return [slot.decode(errors="replace") for slot in slots if slot]


def end(job: str) -> int:
    """Interrupt this worker's threads that compute items of a job; returns how many there are."""
    with _lock:
        threads = [thread for thread, other in _computing.items() if other == job]
        for thread in threads:
            interrupt(thread, Ended)
    return len(threads)


async def free(client: Client, job: str, workers: set[str]) -> None:
    """Have these workers leave a job's items: by an interrupt, or after a grace by a process of their own anew."""
    left, limit = await _still(client, job, workers), time.monotonic() + deadlines.GRACE
    while left and time.monotonic() < limit and client.status == "running":
        await asyncio.sleep(deadlines.CLIENT_POLL)
        left = await _still(client, job, left)
    if left and client.status == "running":
        with suppress(OSError, TimeoutError, AttributeError):
            run = client.run(kill, workers=[*left], nanny=True, on_error="ignore")
            await asyncio.wait_for(run, deadlines.COMEBACK)


async def _still(client: Client, job: str, workers: set[str]) -> set[str]:
    """Those of the workers that are inside an item of the job, or do not answer, as when it holds the GIL."""

    async def left(worker: str) -> bool:
        try:
            run = client.run(end, job, workers=[worker], on_error="ignore")
            answers: dict[str, int] = await asyncio.wait_for(run, deadlines.UNANSWERED)
        except TimeoutError:
            return True
        except (OSError, ValueError, AttributeError):  # it is gone, or the client, which then has no scheduler
            return False
        return bool(answers.get(worker))

    each = list(workers)
    return {worker for worker, stays in zip(each, await asyncio.gather(*map(left, each)), strict=True) if stays}
