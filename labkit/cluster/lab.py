"""A `Lab`: the handle of a running Dask cluster, whoever started it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from labkit.checks import number
from labkit.cluster import deadlines
from labkit.cluster.activity import keep_kernel_busy
from labkit.cluster.display import keep_showing, lab_page, table, widget_view
from labkit.cluster.gang.launch import Gang
from labkit.cluster.interrupts import uninterrupted
from labkit.cluster.job import Job
from labkit.cluster.kernel_settings import KernelSettings, SettingsWatch
from labkit.cluster.preparation import leave_random_alone
from labkit.cluster.sabotage import MOST, Brake, process_of
from labkit.cluster.under_way import Handle, Runs
from labkit.cluster.workers import WorkerInfo, Workers, gpu_memory_now, probe, responding
from labkit.errors import ConnectError, LabClosed, SettingError
from labkit.text import some

if TYPE_CHECKING:
    from distributed import Client


class Lab:
    """A running Dask cluster that a notebook works on; made by `lk.connect`, closed by `close` or a `with` block.

    `client` is its `distributed.Client`, `cluster` the object that started it, if there is one, `kind` one of "local",
    "gpu", "tcp", "tls", "ssh", "gateway" and "client", and `owned` says whether this kernel started the workers, so
    that closing ends them. Every use of a closed lab raises LabClosed.

    >>> with lk.connect(workers=2) as lab:              # doctest: +SKIP
    ...     lab.map(abs, [-1, -2]).result()
    [1, 2]
    """

    def __init__(
        self,
        client: Client,
        *,
        kind: str,
        cluster: Any = None,
        owned: bool = False,
        keep_client: bool = False,
        exposed: bool = False,
    ) -> None:
        self.client: Any = client  # distributed annotates a part of what a Client has
        self.kind = kind
        self.cluster = cluster
        self.owned = owned
        self._keep_client = keep_client  # the user's own Client stays the user's
        self._exposed = exposed  # to whoever reaches the network that leads to it
        self._closed = self._ended = False  # nobody may use it any more, and nothing of it is left
        self._ending = threading.Lock()
        self._running: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._leaving: weakref.WeakSet[Handle] = weakref.WeakSet()  # which were stopped because nobody can reach them
        self._identity: dict[str, Any] = {"workers": {}}  # the scheduler's last answer
        self._probes: dict[tuple[str, str], dict[str, Any]] = {}  # by address and folder
        self._brakes: dict[int, Brake] = {}  # by process
        self._widget: Any = None  # that shows it
        self._watch = SettingsWatch(local=False)
        leave_random_alone()

    # -- the workers

    @property
    def settings(self) -> KernelSettings:
        """What the kernel has set that its workers are to heed: torch's default dtype."""
        return self._watch.now()

    @property
    def revives(self) -> int:
        """How many workers nannies of this kernel bring back when they die."""
        return 0

    def ended_with(self) -> Iterable[str]:
        """The keys of the tasks that were under way in workers as these died; nobody knows of other kernels' ones."""
        return ()

    @property
    def workers(self) -> Workers:
        """A fresh table of the workers, ordered by name; raises LabClosed."""
        self.require_open()
        return self._table(self.known())

    def _table(self, known: dict[str, dict[str, Any]]) -> Workers:
        # a later process may have the port of one that has gone, but not its folder
        process = {address: (address, str(worker["local_directory"])) for address, worker in known.items()}
        before = self._probes
        probes = {address: before[key] for address, key in process.items() if key in before}
        if missing := [address for address in known if address not in probes]:
            probes |= self.client.sync(self._probed, responding(known, missing))
        self._probes = {process[address]: it for address, it in probes.items()}
        return Workers.ordered(
            WorkerInfo(
                name=str(worker["name"]),
                address=address,
                threads=worker["nthreads"],
                memory=worker["memory_limit"] or 0,
                **probes[address],
            )
            for address, worker in known.items()
            if address in probes  # else it left between the two questions, or a task of it lets nobody speak
        )

    async def _probed(self, addresses: Sequence[str]) -> dict[str, dict[str, Any]]:
        asked = [self.client._run(probe, workers=[address], on_error="ignore") for address in addresses]
        limited = [asyncio.wait_for(it, deadlines.ANSWER) for it in asked]
        answers = await asyncio.gather(*limited, return_exceptions=True)
        return {address: it for answer in answers if isinstance(answer, dict) for address, it in answer.items()}

    def known(self) -> dict[str, dict[str, Any]]:
        """What the scheduler says of each worker, by address; what it said last, where it does not answer."""
        return self._asked()["workers"]  # type: ignore[no-any-return]  # a dict of JSON

    def _asked(self) -> dict[str, Any]:
        # Client.scheduler_info returns an attribute that a timer of the client's fills with answers without workers.
        with suppress(OSError):
            asking = self.client.scheduler.identity
            self._identity = self.client.sync(asking, n_workers=-1, callback_timeout=deadlines.ANSWER)
        return self._identity

    def restart_workers(self, addresses: Sequence[str] | None = None) -> None:
        """Give the workers at `addresses` (all of them by default) fresh processes; what they hold is lost.

        Raises LabClosed.
        """
        self.require_open()
        chosen = list(addresses) if addresses is not None else [worker.address for worker in self.workers]
        self.client.restart_workers(chosen)

    def scale(self, workers: int, timeout: float = 30.0) -> None:
        """Change the number of workers; only of a lab that this kernel started on this machine.

        Raises SettingError for any other lab, and ConnectError if it takes more than `timeout` seconds.
        """
        raise SettingError(f"{self!r} is not this kernel's to scale: ask its owner for {workers} workers.")

    # -- work

    def map(self, fn: Callable[[Any], Any], items: Iterable[Any], *, label: str | None = None) -> Job:
        """Compute fn(item) for every item on the workers; returns at once.

        fn is taken to be pure: what a worker computed that then dies is computed again. `label` names the job where it
        is shown, by default as the function. Raises SettingError for a function or an item that cannot be sent,
        WorkerLost when the lab has no workers, and LabClosed.

        >>> lab.map(lambda x: x * x, range(4)).result()     # doctest: +SKIP
        [0, 1, 4, 9]
        """
        self.require_open()
        return Job(self, fn, items, label=label)

    def launch(
        self,
        fn: Callable[..., Any],
        *args: Any,
        ranks: int | None = None,
        timeout: float = 60.0,
        **kwargs: Any,
    ) -> Gang:
        """Run fn(*args, **kwargs) as `ranks` ranks (one per worker by default) of one process group; returns at once.

        Functions from PyTorch's tutorials work as they stand, less their set-up of the process group. `timeout`
        (seconds) limits the wait for all ranks to start, and every collective. Backend: nccl where each rank has its
        own GPU, else gloo. The ranks' traffic is neither encrypted nor authenticated, even where Dask's own is.

        Raises GangError for more ranks than workers, SettingError for arguments out of range or that cannot be sent,
        ConnectError for a cluster elsewhere that encrypts nothing, and LabClosed.

        >>> import torch, torch.distributed as dist
        >>> def total(x):
        ...     t = torch.tensor(float(dist.get_rank() + x))
        ...     dist.all_reduce(t)
        ...     return t.item()
        >>> lab.launch(total, 1, ranks=2).result()          # doctest: +SKIP
        [3.0, 3.0]
        """
        self.require_open()
        return Gang(self, fn, args, kwargs, ranks=ranks, timeout=timeout)

    # -- failure as a lesson

    def kill(self, worker: int | str | WorkerInfo) -> None:
        """Kill a worker's process, as a crash or a lack of memory does; its nanny starts a new one within seconds.

        `worker` is its number or name, its address, or its row of `lab.workers`. Raises SettingError for a worker that
        this kernel did not start, and LabClosed.
        """
        self.require_open()
        before = self.known().keys()
        psutil.Process(process_of(self, worker)).kill()
        limit = time.monotonic() + deadlines.SETTLE
        while before <= self.known().keys() and time.monotonic() < limit:  # or a launch now would be sent to the dead
            time.sleep(deadlines.END_POLL)

    def slow(self, worker: int | str | WorkerInfo, factor: float) -> None:
        """Make all that a worker computes take `factor` times as long, 1 to 100; 1 undoes it.

        Its process is stopped for a part of every 30 ms. That ends with the lab, and with the process: a worker that
        comes back is as fast as ever. Waiting takes no longer than before, and processes that the worker starts are not
        slowed. Raises SettingError for a factor out of range or a worker that this kernel did not start, and LabClosed.
        """
        self.require_open()
        factor, pid = number(factor, "factor", least=1, most=MOST), process_of(self, worker)
        if pid in self._brakes:
            self._brakes.pop(pid).release()
        if factor > 1:
            self._brakes[pid] = Brake(pid, factor)

    # -- its life

    @property
    def closed(self) -> bool:
        """True once `close` was called or the scheduler is gone."""
        return self._closed or self.client.status != "running"

    def require_open(self) -> None:
        """Raise LabClosed unless the cluster is there."""
        if self.closed:
            raise LabClosed("this lab is closed, or its scheduler is gone: call lk.connect() for a new one.")

    @property
    def runs(self) -> Runs:
        """What is under way from this kernel, oldest first: runs, launches and maps, each with `.stop()`."""
        return Runs.of(list(self._running))

    def require_trusted(self) -> None:
        """Raise ConnectError where what ranks send could be read and changed on the way to another machine."""
        if self._exposed:
            raise ConnectError(
                f"{self.client.scheduler.address} encrypts nothing, so others on its network could read and change "
                "what you train: use tls:// with security=, or connect with security=False if that network is yours."
            )

    def track(self, work: Handle) -> None:
        """List the work while it is under way, and call `work.cancel()` when the lab closes."""
        self._running.add(work)
        if not work.part_of:
            keep_kernel_busy(work)

    def make_way(self) -> list[str]:
        """Stop the runs that no name refers to any more; returns what they were."""
        gone = [it for it in list(self._running) if it.abandoned and not it.done and it not in self._leaving]
        self._leaving.update(gone)
        for work in gone:
            work.stop()
        return [work.title for work in gone]

    def close(self) -> None:
        """End the connection, and with it the workers that this kernel started; harmless when called again.

        An interrupt does not stop it halfway.
        """
        if self._ended:
            return
        self._closed = True
        for work in list(self._running):
            work.cancel()
        uninterrupted(self._end)

    def _end(self) -> None:
        with self._ending:  # who closes it again meanwhile waits
            if self._ended:
                return
            try:
                for brake in self._brakes.values():
                    brake.release()
                if not self._keep_client:
                    self.client.close()
            finally:
                if self.owned:
                    self._end_cluster()
            self._ended = True

    def _end_cluster(self) -> None:
        self.cluster.close()

    def let_go(self) -> None:
        """Called when another lab takes the place of this one, which was closed or lost."""

    def __enter__(self) -> Lab:
        self.require_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- how it looks

    @property
    def dashboard(self) -> str | None:
        """Where a browser finds Dask's dashboard, also through a JupyterHub's proxy; None where there is none."""
        return self._dashboard(self._asked)

    def _dashboard(self, ask: Callable[[], dict[str, Any]]) -> str | None:
        asked = ask()
        port, path = asked.get("services", {}).get("dashboard"), asked.get("dashboard_path", "/status")
        if port is None:  # Bokeh is not installed there
            return None
        host = str(urlsplit(self.client.scheduler.address).hostname)
        prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
        if prefix is None:
            return f"http://{host}:{port}{path}"
        place = port if host in ("127.0.0.1", "localhost") else f"{host}:{port}"
        return f"{prefix.rstrip('/')}/proxy/{place}{path}"

    def __repr__(self) -> str:
        if self.closed:
            return "Lab: closed"
        return self._summary(self._threads(self.known))

    def _summary(self, threads: Sequence[int]) -> str:
        each = f" × {some(threads[0], 'thread')}" if len(set(threads)) == 1 else ""
        return f"Lab: {some(len(threads), 'worker')}{each}, {self.kind}"

    def _threads(self, known: Callable[[], dict[str, dict[str, Any]]]) -> list[int]:
        return [worker["nthreads"] for worker in known().values()]

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        if self.closed:
            return {"text/plain": repr(self)}
        from ipywidgets import HTML

        self._widget = self._widget or HTML()  # one, however often it is shown
        self._widget.value = self._page()
        keep_showing(self._widget, self._page, lambda: bool(self.runs), lambda: self.closed)
        return widget_view(self._widget, repr(self))

    def _page(self) -> str:
        """The workers and their memory as they are now: one question to the scheduler, and one to workers with GPUs."""
        if self.closed:
            return table(repr(self), "", (), ())
        asked = self._asked()
        known = asked["workers"]
        used = {address: int(worker["metrics"].get("memory", 0)) for address, worker in known.items()}
        workers = self._table(known)
        seeing = [worker.address for worker in workers if worker.gpus]
        on_gpus: dict[str, Any] = {}
        with suppress(TimeoutError):  # a worker that is held up; the others' are shown the next time
            if seeing:
                options = {"on_error": "ignore", "callback_timeout": deadlines.ANSWER}
                on_gpus = self.client.sync(self.client._run, gpu_memory_now, workers=seeing, **options)
        summary = self._summary(self._threads(lambda: known))
        return lab_page(summary, self._dashboard(lambda: asked), workers, used, on_gpus)
