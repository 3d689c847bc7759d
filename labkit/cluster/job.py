"""A `Job`: many items on their way through a lab's workers, when each was computed, and why one was not."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import cloudpickle
from distributed import Future, KilledWorker

from labkit.cluster import deadlines
from labkit.cluster.channels import Inbox
from labkit.cluster.display import NotebookBar, TerminalBar, in_notebook, make_bar, widget_view
from labkit.cluster.gang.diagnosis import with_remedy
from labkit.cluster.map_task import Call, ItemFailed, ItemResult, Unsent, free
from labkit.cluster.memory import MORE_ROOM
from labkit.cluster.shipping import BIG, no_graph_warning, pack, share, submit_alone
from labkit.cluster.workers import WorkerPool
from labkit.errors import LabClosed, LabkitError, SettingError, Stopped, TaskError, WorkerLost
from labkit.tasks.schedule import Schedule
from labkit.text import in_words, short, some


class Progress(NamedTuple):
    """How many of a job's items are computed."""

    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.done} of {self.total}"


class Job:
    """fn(item) for every item on its way through the workers; made by `Lab.map`.

    fn is taken to be pure: when a worker dies, what it computed or had begun is computed again on another. A notebook
    shows it as a bar that fills, above what the workers print.

    >>> job = lab.map(abs, [-1, -2])        # doctest: +SKIP
    >>> job.result()                        # doctest: +SKIP
    [1, 2]
    >>> job                                 # doctest: +SKIP
    Job abs: 2 items computed
    """

    def __init__(
        self, lab: WorkerPool, fn: Callable[[Any], Any], items: Iterable[Any], label: str | None = None
    ) -> None:
        self._lab = lab
        self._items = _listed(fn, items)
        self.label = str(label or getattr(fn, "__name__", type(fn).__name__))
        self.since = time.time()
        self._workers = _names(lab)
        self._bar: NotebookBar | TerminalBar | None = None
        self._schedule: Schedule | None = None
        self._computed = 0  # items, once the job has ended
        self._inbox = Inbox(lab.client)
        self._cancelled = asyncio.Event()
        self._freeing: asyncio.Future[None] | None = None
        self._futures, self._shared = self._submit(fn)
        self._end = asyncio.run_coroutine_threadsafe(self._collect(), lab.client.loop.asyncio_loop)
        lab.track(self)

    def _submit(self, fn: Callable[[Any], Any]) -> tuple[list[Future[Any]], list[Future[Any]]]:
        client = self._lab.client
        payload = pack(fn, settings=self._lab.settings)
        try:
            items, shared = share(client, self._items)
        except Exception as error:
            raise self._unsendable(error) from error
        extra: dict[str, Any] = {}
        if len(payload) > BIG:  # a model in a closure, say
            extra["payload"] = submit_alone(client, payload)
            shared.append(extra["payload"])
        call = Call(None if extra else payload, self._inbox.address)
        if not items:
            return [], []
        try:
            with no_graph_warning():
                # Dask counts tasks by the letters that their keys begin with, and for ever
                name = f"{re.sub('[^A-Za-z]+', '_', self.label).strip('_') or 'map'}-{uuid.uuid4().hex}"
                keys = [f"{name}-{number}" for number in range(len(items))]
                return client.map(call, items, key=keys, pure=False, **extra), shared
        except Exception as error:
            raise self._unsendable(error) from error

    # -- what the user asks for

    def result(self, timeout: float | None = None) -> list[Any]:
        """The values in the order of the items; waits for them, for at most `timeout` seconds.

        Raises TaskError when fn failed on an item (with fn's own exception as its cause), WorkerLost when an item
        ended its workers again and again, Stopped after `cancel`, LabClosed, and TimeoutError (the job goes on).
        Ctrl-C, or the notebook's interrupt, cancels the job.
        """
        return [it.value for it in self._results(timeout)]

    def computed(self) -> Iterator[tuple[int, Any]]:
        """Each item's number and value as soon as it is computed, whichever comes first; waits for all.

        Raises what `result` raises, once it is known.
        """
        told: set[int] = set()
        while not self.done:
            for number, future in enumerate(list(self._futures)):
                if number not in told and future.status == "finished":
                    try:
                        done = future.result(deadlines.TICK)
                    except Exception:  # noqa: BLE001  it is told at the end, if it has not come back until then
                        break
                    if not isinstance(done.value, Unsent):
                        told.add(number)
                        yield number, done.value
            concurrent.futures.wait([self._end], timeout=deadlines.TICK)
        end = self._end.result()
        if isinstance(end, JobFailure):
            raise end.kind(end.sentence) from end.cause
        yield from ((number, it.value) for number, it in enumerate(end) if number not in told)

    @property
    def schedule(self) -> Schedule:
        """Which worker computed which item when, as measured there in seconds; waits for the end like `result`.

        Raises what `result` raises.
        """
        if self._schedule is None:
            done = self._results(None)
            # one lane per worker, also for one that joined while the job ran
            names = dict.fromkeys([*self._workers, *(it.worker for it in done)])
            lanes = {name: lane for lane, name in enumerate(names)}
            self._schedule = Schedule.measured(
                [lanes[it.worker] for it in done],
                [it.start for it in done],
                [it.finish for it in done],
                [f"worker {name}" for name in names],
                labels=[short(item) for item in self._items],
            )
        return self._schedule

    @property
    def done(self) -> bool:
        """Whether every item is computed, or none will be any more."""
        return self._end.done()

    @property
    def failed(self) -> bool:
        """Whether `result` will raise."""
        return self.done and isinstance(self._end.result(), JobFailure)

    @property
    def progress(self) -> Progress:
        """How many items are computed; it falls when a worker dies with what it computed."""
        return Progress(self._computed if self.done else self._count(), len(self._items))

    def cancel(self) -> None:
        """Take the items that are not computed yet off the workers; harmless when the job is done.

        Those under way are interrupted; a worker that does not leave its item within seconds is restarted.
        """
        if not self.done and self._lab.client.status == "running":
            self._lab.client.loop.add_callback(self._cancelled.set)
            concurrent.futures.wait([self._end], timeout=deadlines.NO_WORKERS)

    # -- as work among others of its lab

    part_of = ""
    abandoned = False  # its items are called for, whoever has its name
    stop = cancel

    @property
    def title(self) -> str:
        """What it is."""
        return f"Job {self.label}"

    @property
    def reached(self) -> str:
        """How far it is, in words."""
        return f"{self.progress} items"

    # -- how it ends

    async def _collect(self) -> list[ItemResult] | JobFailure:
        """Runs on the client's event loop until the values are here, or cannot come any more."""
        client = self._lab.client
        gathering = asyncio.ensure_future(client.gather(self._futures, asynchronous=True))
        try:
            await self._until_done_or_deserted(gathering)
            results: list[ItemResult] = gathering.result()
            self._computed = len(results)
            return _unsent(results, self._items) or results
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  kept for result(), which raises it
            self._computed = self._count()
            failure = await self._explain(error)
            if client.status == "running":
                await self._take_off(gathering)
            return failure
        finally:
            gathering.cancel()
            # take its exception, so that asyncio does not print it
            gathering.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._futures, self._shared = [], []  # the workers may forget what is here now

    async def _until_done_or_deserted(self, gathering: asyncio.Future[Any]) -> None:
        """Raises CancelledError after `cancel`, WorkerLost once no worker could compute for longer than a restart."""
        since, cancelled = time.monotonic(), asyncio.ensure_future(self._cancelled.wait())
        waited = {gathering, cancelled}
        try:
            while not (await asyncio.wait(waited, timeout=deadlines.NO_WORKERS / 10, return_when="FIRST_COMPLETED"))[0]:
                workers = (await self._lab.client.scheduler.identity(n_workers=-1))["workers"].values()
                long = deadlines.BACK_AGAIN if workers or self._lab.revives else deadlines.NO_WORKERS
                if not all(map(_full, workers)):
                    since = time.monotonic()
                elif time.monotonic() - since > long:
                    raise WorkerLost(_FULL if workers else _GONE)
        finally:
            cancelled.cancel()
        if not gathering.done():
            raise asyncio.CancelledError

    async def _take_off(self, gathering: asyncio.Future[Any]) -> None:
        """Cancel the futures, and let the workers that are inside of an item go on with something else."""
        client, keys = self._lab.client, {future.key for future in self._futures}
        with suppress(OSError):
            processing: dict[str, Any] = await client.scheduler.processing(workers=None)
            holders = {worker for worker, own in processing.items() if keys.intersection(own)}
            await client.cancel(self._futures, asynchronous=True)
            await asyncio.wait({gathering})  # it ends now that its futures are cancelled
            self._freeing = asyncio.ensure_future(free(client, self._inbox.address, holders))
            await asyncio.wait({self._freeing}, timeout=deadlines.TICK)  # an interrupt is enough, mostly

    async def _explain(self, error: BaseException) -> JobFailure:
        """The first failed item is the one to name, for items start in their order."""
        failed = next((i for i, future in enumerate(self._futures) if future.status == "error"), None)
        if isinstance(error, WorkerLost):
            return JobFailure(WorkerLost, str(error))
        if failed is not None and not self._cancelled.is_set():
            try:
                await self._lab.client.gather([self._futures[failed]], asynchronous=True)
            except Exception as own:  # noqa: BLE001  the item's, which is not always the one that was heard of first
                error = own
            if isinstance(error, KilledWorker):
                return await self._killed(failed, error.allowed_failures + 1)
            return _item_failure(error, failed, self._items[failed], at_home=bool(self._lab.revives))
        if self._lab.closed or isinstance(error, OSError):
            sentence = "the lab was closed, or its scheduler lost, while the job ran: connect and map again."
            return JobFailure(LabClosed, sentence)
        return JobFailure(Stopped, f"the job was cancelled after {self.progress} items: map again for a result.")

    async def _killed(self, suspect: int, times: int) -> JobFailure:
        """Dask suspects all items that lay on a worker that died; which ones had begun, its nanny knows."""
        indices = {future.key: index for index, future in enumerate(self._futures)}
        limit = time.monotonic() + deadlines.SETTLE
        while True:
            deaths = Counter(indices[key] for key in self._lab.ended_with() if key in indices)
            if deaths.total() >= times or not self._lab.revives or time.monotonic() > limit:
                break
            await asyncio.sleep(deadlines.END_POLL)  # the scheduler hears of the last death before the nanny does
        if deaths:
            ((suspect, times),) = deaths.most_common(1)
        return JobFailure(
            WorkerLost,
            f"{_named(suspect, self._items[suspect])} ended {some(times, 'worker')} one after the other, most likely "
            "for want of memory, by a crash in compiled code, or because it ends its own process: try it alone, or "
            "give the workers more memory.",
        )

    def _results(self, timeout: float | None) -> list[ItemResult]:
        """Wait in steps, so that the bar moves and Ctrl-C arrives."""
        deadline = None if timeout is None else time.monotonic() + timeout
        bar = self._shown()
        try:
            while not self.done:
                left = deadlines.TICK if deadline is None else min(deadlines.TICK, deadline - time.monotonic())
                if left <= 0:
                    raise TimeoutError(
                        f"the job is at {self.progress} items after {timeout:g} s: wait longer, or cancel it."
                    )
                concurrent.futures.wait([self._end], timeout=left)
                bar.update()
        except KeyboardInterrupt:
            self.cancel()
            raise
        finally:
            bar.finish()
        end = self._end.result()
        if isinstance(end, JobFailure):
            raise end.kind(end.sentence) from end.cause
        return end

    def _count(self) -> int:
        return sum(future.status == "finished" for future in self._futures)

    def _unsendable(self, error: Exception) -> SettingError:
        """Names the first item that cannot be pickled."""
        culprit = "an item"
        for index, item in enumerate(self._items):
            try:
                cloudpickle.dumps(item)
            except Exception as own:  # noqa: BLE001  whatever its pickling raises, it is the one
                culprit, error = _named(index, item), own  # and Dask's words are about its own graph
                break
        return SettingError(
            f"{culprit} cannot be sent to the workers ({in_words(error)}): open files, locks and the lab itself have "
            "to be made inside the function."
        )

    # -- how it looks

    def printed(self) -> list[str]:
        """What the workers printed since the last call, line by line, each led by its "[worker k]"."""
        return self._inbox.printed()

    def _shown(self) -> NotebookBar | TerminalBar:
        """The bar; where nobody has seen the job yet, waiting for it shows it."""
        if self._bar is None:
            self._bar = make_bar(self)
            if in_notebook():
                from IPython.display import display

                display(self)
        return self._bar

    @property
    def state(self) -> str:
        """How far the job is, in words."""
        if not self.done:
            return f"{self.progress} items"
        end = self._end.result()
        if isinstance(end, JobFailure):
            return f"{end.kind.__name__} after {self.progress} items"
        return f"{some(len(self._items), 'item')} computed"

    def __repr__(self) -> str:
        return f"Job {self.label}: {self.state}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        if not isinstance(self._bar, NotebookBar):
            self._bar = NotebookBar(self)
        self._bar.keep_ticking()
        # What varies from run to run lives in the widget alone, so that saved outputs can be compared.
        return widget_view(self._bar.widget, f"Job {self.label}: {some(len(self._items), 'item')}")


def _listed(fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    if not callable(fn):
        raise SettingError(f"lab.map wants a function and then items, not {short(fn)} for a function.")
    try:
        return list(items)
    except TypeError as error:
        raise SettingError(f"lab.map wants items to go through, and {short(items)} has none.") from error


def _names(lab: WorkerPool) -> list[str]:
    """The workers' names; a cluster whose workers are all restarting is given time for that."""
    try:
        lab.client.wait_for_workers(1, timeout=deadlines.NO_WORKERS)
    except TimeoutError as error:
        none = "this lab has no workers: wait for one to join, or connect to another lab."
        raise WorkerLost(_FULL if lab.workers else none) from error
    return [worker.name for worker in lab.workers]


# -- what the failure of one item means


class JobFailure(NamedTuple):
    """Why a job has no result; a fresh exception is raised from it each time the result is asked for."""

    kind: type[LabkitError]
    sentence: str
    cause: BaseException | None = None


_GONE = "all workers of this lab are gone: connect again."
_FULL = (
    "all workers have used up their memory, and begin nothing before some of it is free: let the items return less, "
    + MORE_ROOM
)


def _full(worker: dict[str, Any]) -> bool:
    """Whether Dask has paused a worker, for want of memory, that computes nothing any more."""
    return worker["status"] == "paused" and not worker["metrics"].get("task_counts", {}).get("executing")


def _named(index: int, item: Any) -> str:
    return f"item {index} ({short(item)})"


def _unsent(results: list[ItemResult], items: list[Any]) -> JobFailure | None:
    """Why the first value that did not come did not."""
    for index, (result, item) in enumerate(zip(results, items, strict=True)):
        if isinstance(unsent := result.value, Unsent):
            article = "an" if unsent.kind[0] in "aeiouAEIOU" else "a"
            what = unsent.kind if unsent.there else f"{article} {unsent.kind}"
            where = "read here" if unsent.there else "sent"
            remedy = "return a list" if unsent.kind == "generator" else "return numbers, arrays, CPU tensors or lists"
            sentence = f"{_named(index, item)} returned {what}, which cannot be {where} ({unsent.why}): {remedy}."
            return JobFailure(TaskError, sentence)
    return None


def _item_failure(error: BaseException, index: int, item: Any, at_home: bool) -> JobFailure:
    """Why item number `index` failed: `error` is what Dask says of it, or the report of what the function raised."""
    place = "its worker"
    if isinstance(error, ItemFailed):
        place, error = f"worker {error.worker}", error.failure.original()
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if module and (module in sys.modules or importlib.util.find_spec(module)):
        return JobFailure(
            TaskError,
            f"the workers have no module {module!r}, which this kernel has: install it there, or send its file "
            f'with lab.client.upload_file("{module}.py").',
            error,
        )
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    sentence = with_remedy(f"{_named(index, item)} failed on {place} with {what}", str(error))
    if isinstance(error, FileNotFoundError) and not at_home:
        sentence += ": the workers have not this kernel's files: copy it there, or read it here and send what it holds."
    return JobFailure(TaskError, sentence, error)
