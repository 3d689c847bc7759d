"""A `Lab`: the handle of a running Dask cluster, whoever started it."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from labkit.checks import number
from labkit.cluster.machine import gpu_memory, size, visible_gpus
from labkit.cluster.page import counted, lab_page, view_of
from labkit.cluster.preparation import leave_random_alone
from labkit.errors import LabClosed, SettingError

if TYPE_CHECKING:
    from distributed import Client

    from labkit.cluster.gang.launch import Gang
    from labkit.cluster.job import Job
    from labkit.cluster.sabotage import Brake


@dataclass(frozen=True)
class WorkerInfo:
    """One worker: `memory` in bytes (0: no limit), `gpus` the device names it may see."""

    name: str
    address: str
    threads: int
    memory: int
    pid: int
    gpus: tuple[str, ...] = ()


class Workers(tuple[WorkerInfo, ...]):
    """The workers of a lab in the order of their names; prints as a table."""

    __slots__ = ()

    @classmethod
    def ordered(cls, workers: Iterable[WorkerInfo]) -> Workers:
        """Sort by name, numbers as numbers."""
        return cls(sorted(workers, key=lambda worker: (len(worker.name), worker.name)))

    def __repr__(self) -> str:
        rows = [("name", "threads", "memory", "gpus", "pid", "address")]
        for worker in self:
            gpus = ",".join(worker.gpus) or "-"
            rows.append((worker.name, str(worker.threads), size(worker.memory), gpus, str(worker.pid), worker.address))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


class Lab:
    """A running Dask cluster that a notebook works on; made by `lk.connect`, closed by `close` or a `with` block."""

    def __init__(
        self,
        client: Client,
        *,
        kind: str,
        cluster: Any = None,
        owned: bool = False,
        keep_client: bool = False,
    ) -> None:
        self.client: Any = client  # distributed annotates a part of what a Client has
        self.kind = kind  # "local", "gpu", "tcp", "tls", "ssh", "gateway" or "client"
        self.cluster = cluster
        self.owned = owned  # this kernel started the workers, so closing ends them
        self._keep_client = keep_client  # the user's own Client stays the user's
        self._closed = False
        self._running: weakref.WeakSet[Any] = weakref.WeakSet()
        self._identity: dict[str, Any] = {"workers": {}}  # the scheduler's last answer
        self._probes: dict[str, dict[str, Any]] = {}
        self._brakes: dict[int, Brake] = {}  # by process
        leave_random_alone()

    # -- the workers

    @property
    def workers(self) -> Workers:
        """A fresh table of the workers, ordered by name."""
        self.require_open()
        known = self.known()
        missing = [address for address in known if address not in self._probes]
        if missing:
            self._probes |= self.client.run(probe, workers=missing, on_error="ignore")
        infos = [
            WorkerInfo(
                name=str(worker["name"]),
                address=address,
                threads=worker["nthreads"],
                memory=worker["memory_limit"] or 0,
                **self._probes[address],
            )
            for address, worker in known.items()
            if address in self._probes  # else it left between the two questions
        ]
        return Workers.ordered(infos)

    def known(self) -> dict[str, dict[str, Any]]:
        """What the scheduler says of each worker, by address; what it said last, where it does not answer."""
        return self._asked()["workers"]  # type: ignore[no-any-return]  # a dict of JSON

    def _asked(self) -> dict[str, Any]:
        # Client.scheduler_info returns an attribute that a timer of the client's fills with answers without workers.
        with suppress(OSError):
            self._identity = self.client.sync(self.client.scheduler.identity, n_workers=-1)
        return self._identity

    def restart_workers(self, addresses: Sequence[str] | None = None) -> None:
        """Give the workers at `addresses` (all of them by default) fresh processes; what they hold is lost."""
        self.require_open()
        chosen = list(addresses) if addresses is not None else [worker.address for worker in self.workers]
        self.client.restart_workers(chosen)

    def scale(self, workers: int, timeout: float = 30.0) -> None:
        """Change the number of workers; only of a lab that this kernel started on this machine."""
        raise SettingError(f"{self!r} is not this kernel's to scale: ask its owner for {workers} workers.")

    # -- work

    def map(self, fn: Callable[[Any], Any], items: Iterable[Any], *, label: str | None = None) -> Job:
        """Compute fn(item) for every item on the workers; returns at once."""
        from labkit.cluster.job import Job

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
        """Run fn(*args, **kwargs) as the `ranks` of one torch.distributed process group; returns at once."""
        from labkit.cluster.gang.launch import launch

        self.require_open()
        return launch(self, fn, *args, ranks=ranks, timeout=timeout, **kwargs)

    # -- failure as a lesson

    def kill(self, worker: int | str | WorkerInfo) -> None:
        """Kill a worker's process, as a crash or a lack of memory does; its nanny starts a new one within seconds.

        `worker` is its number or name, its address, or its row of `lab.workers`. Raises SettingError for a worker that
        this kernel did not start.
        """
        from labkit.cluster.sabotage import process_of

        self.require_open()
        psutil.Process(process_of(self, worker)).kill()

    def slow(self, worker: int | str | WorkerInfo, factor: float) -> None:
        """Make all that a worker computes take `factor` times as long, 1 to 100; 1 undoes it.

        Its process is stopped for a part of every 30 ms. That ends with the lab, and with the process: a worker that
        comes back is as fast as ever. Waiting takes no longer than before, and processes that the worker starts are not
        slowed. Raises SettingError for a worker that this kernel did not start.
        """
        from labkit.cluster.sabotage import MOST, Brake, process_of

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

    def track(self, work: Any) -> None:
        """Call `work.cancel()` when the lab closes, unless the work is forgotten before."""
        self._running.add(work)

    def close(self) -> None:
        """End the connection, and with it the workers that this kernel started; harmless when called again."""
        if self._closed:
            return
        self._closed = True
        try:
            for work in list(self._running):
                work.cancel()
            for brake in self._brakes.values():
                brake.release()
            if not self._keep_client:
                self.client.close()
        finally:
            if self.owned:
                self.cluster.close()

    def __enter__(self) -> Lab:
        self.require_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- how it looks

    @property
    def dashboard(self) -> str | None:
        """Where a browser finds Dask's dashboard, also through a JupyterHub's proxy; None where there is none."""
        if self.kind == "gateway":  # it serves the dashboard itself
            return str(self.cluster.dashboard_link)
        port = self._asked().get("services", {}).get("dashboard")
        if port is None:  # Bokeh is not installed there
            return None
        host = str(urlsplit(self.client.scheduler.address).hostname)
        prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
        if prefix is None:
            return f"http://{host}:{port}/status"
        place = port if host in ("127.0.0.1", "localhost") else f"{host}:{port}"
        return f"{prefix.rstrip('/')}/proxy/{place}/status"

    def __repr__(self) -> str:
        if self.closed:
            return "Lab: closed"
        threads = self._threads()
        each = f" × {counted(threads[0], 'thread')}" if len(set(threads)) == 1 else ""
        return f"Lab: {counted(len(threads), 'worker')}{each}, {self.kind}"

    def _threads(self) -> list[int]:
        return [worker["nthreads"] for worker in self.known().values()]

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        if self.closed:
            return {"text/plain": repr(self)}
        known = self.known()
        used = {address: int(worker["metrics"].get("memory", 0)) for address, worker in known.items()}
        workers = self.workers
        seeing = [worker.address for worker in workers if worker.gpus]
        on_gpus = self.client.run(gpu_memory_now, workers=seeing, on_error="ignore") if seeing else {}
        return view_of(lab_page(repr(self), self.dashboard, workers, used, on_gpus), repr(self))


def probe() -> dict[str, Any]:
    """What a worker knows about itself: its process id and the GPUs it may see."""
    return {"pid": os.getpid(), "gpus": visible_gpus()}


async def gpu_memory_now() -> tuple[tuple[int, int], ...]:
    """What a worker's GPUs hold, asked in a thread of its own: nvidia-smi may take a second."""
    return await asyncio.to_thread(gpu_memory)
