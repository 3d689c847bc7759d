"""Dask on this machine: a scheduler in this process, workers in their own, all of them on the loopback interface.

Other users of the machine reach that interface too, so all traffic is encrypted, and who has no certificate is turned
away; Dask's pages, which browsers fetch without one, stand under a secret part of their address.

Workers that take the place of lost ones are forked from a template, a process that has imported torch and distributed.
Such a worker trains within half a second, instead of the five seconds that importing all it needs takes, which is what
a run waits for whose worker has died. The template is multiprocessing's fork server: it is single-threaded, touches no
GPU, ends when the kernel and its workers have, and is asked for a process the way a spawned one is made.

Where memory is limited, as in a classroom, the first workers are forked from it as well: `connect` then waits for its
imports, but only one process makes them, and after a training a lab of two takes 670 MiB with its kernel, not 1,050.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import secrets
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import dask.config
import psutil
from distributed import Client, Nanny, Scheduler, Security, Status
from distributed.core import Server
from distributed.deploy.spec import SpecCluster
from distributed.utils import get_mp_context

from labkit.cluster import deadlines
from labkit.cluster.certificates import temporary_security, turn_away_the_silent
from labkit.cluster.interrupts import uninterrupted
from labkit.cluster.kernel_settings import SettingsWatch
from labkit.cluster.lab import Lab
from labkit.cluster.lifeline import LocalWorker, end_group
from labkit.cluster.machine import own_folder, usable_cores, visible_gpus
from labkit.cluster.machine_checks import known_causes
from labkit.cluster.map_task import RECORD, recorded
from labkit.cluster.memory import as_many_as_fit, hold_this_worker_to, hold_to, memory_is_limited, share_of
from labkit.cluster.preparation import Preparation
from labkit.cluster.retention import BRIEF, LOGS, RecentSpans, keep_no_schedulers
from labkit.cluster.workers import WorkerRequest
from labkit.errors import ConnectError, SettingError
from labkit.text import some

LOOPBACK = "127.0.0.1"

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_METHOD = "distributed.worker.multiprocessing-method"
# Dask's event loops tick 50 times a second each, and threads beside them look 100 times a second at what runs, for a
# page of the dashboard; on two cores both together take more than 3 % of what training could have, and to look ten
# times a second how much memory is used takes another one.
_QUIET = {
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.worker.memory.monitor-interval": "500ms",
    "distributed.worker.profile.enabled": False,
    "distributed.worker.http.routes": [],  # a worker's own page would show anybody what it does
    **BRIEF,
}


def open_local(request: WorkerRequest) -> Lab:
    """Processes on this machine: as many as `request` says, else one per `threads` usable cores, if memory bears it."""
    workers = request.workers or max(1, usable_cores() // (request.threads or 1))
    if request.workers is None and request.memory is None:
        workers = as_many_as_fit(workers)
    return _open(request, workers, "local")


def open_gpus(request: WorkerRequest, devices: Sequence[str] | None = None) -> Lab:
    """One process on this machine per GPU, each of which sees its own GPU only, by CUDA_VISIBLE_DEVICES.

    That is what dask-cuda's LocalCUDACluster sets as well, so it is not needed; it would bring its own nannies, which
    write OMP_NUM_THREADS into this kernel. A cluster that it started can be given to `connect`.
    """
    devices = visible_gpus() if devices is None else devices
    if not devices:
        raise ConnectError(
            "this machine shows no NVIDIA GPU (nvidia-smi lists none): use lk.connect() for its CPU cores."
        )
    workers = request.workers or len(devices)
    if workers > len(devices):
        raise SettingError(f"workers={workers} would make workers share the {len(devices)} GPU(s) here: ask for fewer.")
    return _open(request, workers, "gpu", [{"CUDA_VISIBLE_DEVICES": device} for device in devices[:workers]])


def _open(request: WorkerRequest, workers: int, kind: str, environments: Sequence[Mapping[str, str]] = ()) -> Lab:
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)  # a worker imports the script that asks for it: the script's own process says so, once
    return uninterrupted(partial(_start, request, workers, kind, environments), undo=LocalLab.close)


def _has_no_guard() -> bool:
    """Whether this is a script that never asks for its `__name__`, so that all of it runs where it is imported."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    try:
        return path is not None and "__name__" not in Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _start(request: WorkerRequest, workers: int, kind: str, environments: Sequence[Mapping[str, str]]) -> LocalLab:
    memory = request.memory or share_of(workers)
    threads = request.threads or 1
    try:
        cluster = local_cluster(workers, threads, memory, security=request.security, environments=environments)
    except Exception as error:
        if _has_no_guard():
            raise ConnectError(
                "Workers import the script that starts them, and this one starts workers as it is imported: put its "
                'work below if __name__ == "__main__":.'
            ) from None
        raise ConnectError(_why_not(workers, error)) from error
    try:
        with dask.config.set(_QUIET):
            client = Client(cluster, timeout=request.timeout)
        client.register_plugin(Preparation(interruptible=False))
        return LocalLab(client, kind=kind, cluster=cluster, owned=True, memory=request.memory)
    except BaseException:
        cluster.close()
        raise


def _why_not(workers: int, error: Exception) -> str:
    """The cause, where it lies with the machine and is known."""
    began = f"{some(workers, 'local worker')} could not be started ({error})"
    if causes := known_causes():
        return f"{began}: {'; '.join(f'{it.name}: {it.found}, so {it.remedy}' for it in causes)}"
    return f"{began}: see what lk.doctor() says as it starts one worker, and how far it comes."


class LocalLab(Lab):
    """A lab that this kernel started on this machine."""

    def __init__(self, client: Client, *, memory: int | None, **rest: Any) -> None:
        super().__init__(client, **rest)
        self._memory = memory  # bytes per worker as the user wished; None for an even share
        self._watch = SettingsWatch(local=True)

    @property
    def revives(self) -> int:
        """How many workers nannies of this kernel bring back when they die."""
        return len(self.cluster.worker_spec)

    def ended_with(self) -> Iterable[str]:
        """The keys of the tasks that were under way in workers as these died, of late."""
        return [key for nanny in self.cluster.workers.values() for key in nanny.ended_with]

    def _threads(self, _: object) -> list[int]:
        # A worker that died counts: it is back in a second.
        return [self.cluster.new_spec["options"]["nthreads"]] * len(self.cluster.worker_spec)

    def scale(self, workers: int, timeout: float = 30.0) -> None:
        """Start or end workers until there are `workers`; ends the newest first.

        Where the user has not said how much memory a worker has, all of them share anew what there is. Raises
        SettingError where each worker has a GPU, or memory does not bear so many, and ConnectError if it takes more
        than `timeout` seconds.
        """
        if self.kind == "gpu":
            raise SettingError("each worker of this lab has a GPU of its own: close the lab to change their number.")
        spec = self.cluster.new_spec
        memory = self._memory or share_of(workers)
        self.cluster.new_spec = spec | {"options": spec["options"] | {"memory_limit": memory}}
        self.cluster.scale(workers)
        deadline = time.monotonic() + timeout
        while len(self.known()) != workers:
            if time.monotonic() > deadline:
                raise ConnectError(
                    f"the lab did not become {workers} workers in {timeout:g} s: close it and connect again."
                )
            time.sleep(deadlines.END_POLL)
        cluster = self.cluster
        cluster.sync(hold_to, memory, cluster.workers.values(), cluster.scheduler)
        self.client.run(hold_this_worker_to, memory, on_error="ignore")


# -- Dask's cluster and nanny, each with what it lacks here


def local_cluster(
    workers: int,
    threads: int,
    memory: int,
    *,
    security: Security | None = None,
    environments: Sequence[Mapping[str, str]] = (),
) -> OwnCluster:
    """A scheduler in this process and `workers` processes, all on 127.0.0.1 and free ports.

    `memory` is bytes per worker; `environments`, where given, holds the variables of each worker. Without `security`
    there are certificates for this cluster alone.
    """
    security = security or temporary_security()
    scheme = "tls://" if security.require_encryption else "tcp://"
    shared: dict[str, Any] = {"host": LOOPBACK, "protocol": scheme, "security": security, "dashboard": True}
    shared["local_directory"] = str(own_folder())
    options = {"nthreads": threads, "memory_limit": memory, "silence_logs": logging.CRITICAL}
    worker: dict[str, Any] = {"cls": LocalNanny, "options": shared | options | {"dashboard": False}}
    named = {
        index: worker | {"options": worker["options"] | {"env": dict(environment)}}
        for index, environment in enumerate(environments)
    }
    if not environments and memory_is_limited():
        _start_template(_counts(threads))  # for the first workers too, which share with it what it has imported
    with dask.config.set(_QUIET):
        cluster = OwnCluster(  # type: ignore[no-untyped-call]
            scheduler={"cls": LocalScheduler, "options": shared | {"port": 0, "dashboard_address": f"{LOOPBACK}:0"}},
            workers=named or dict.fromkeys(range(workers), worker),
            worker=worker,
            security=security,
            # What goes wrong is raised, in labkit's words; a lesson that kills workers should not fill its cell.
            silence_logs=logging.CRITICAL,
        )
    if not environments:  # each worker on a GPU has its own
        loop: Any = cluster.loop  # where nannies borrow the environment
        loop.add_callback(_start_template, _counts(threads))
    return cluster


class LocalScheduler(Scheduler):
    """A scheduler whose pages are shown to those only who know the secret that their address begins with.

    Dask has `http_prefix`, but leads anybody there who asks for / or /sitemap.json, and behind a proxy its pages then
    look for their scripts in the wrong place.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.extensions["spans"] = RecentSpans(self)

    def start_http_server(self, *args: Any, **options: Any) -> None:
        keep_no_schedulers()
        super().start_http_server(*args, **options)  # type: ignore[no-untyped-call]
        self.secret = secrets.token_urlsafe(16)
        pages: Any = self.http_application
        find = pages.find_handler

        def find_for_owner(request: Any, **rest: Any) -> Any:
            first, _, page = request.path.removeprefix("/").partition("/")
            known = secrets.compare_digest(first.encode(), self.secret.encode())
            request.path = f"/{page}" if known else ""  # where nothing is
            return find(request, **rest)

        pages.find_handler = find_for_owner

    async def listen(self, *args: Any, **options: Any) -> None:
        await super().listen(*args, **options)  # type: ignore[no-untyped-call]
        turn_away_the_silent(self)

    def identity(self, n_workers: int = -1) -> dict[str, Any]:
        return super().identity(n_workers) | {"dashboard_path": f"/{self.secret}/status"}


class OwnCluster(SpecCluster):
    """A cluster whose nannies stay whatever happens to their workers, and that is closed when it was told to."""

    @property
    def dashboard_link(self) -> str:
        """Where a browser on this machine finds Dask's dashboard."""
        scheduler: Any = self.scheduler
        return f"http://{LOOPBACK}:{scheduler.http_server.port}/{scheduler.secret}/status"

    def wants(self, nanny: Nanny) -> bool:
        """Whether this nanny is to have a worker, also after one that left in an orderly way."""
        known = self.status is Status.running and self.workers.get(nanny.name) is nanny
        return known and nanny.name in self.worker_spec

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # Fifteen seconds after a worker's death SpecCluster looks whether it is back, and gives its nanny up if not.
        # Should it have died a second time just then, it would never come back.
        super(SpecCluster, self)._update_worker_status(op, msg)  # type: ignore[no-untyped-call]

    async def _close(self) -> None:
        try:
            await super()._close()  # type: ignore[no-untyped-call]
        except RuntimeError:
            # A scheduler that gives up a connection at this moment, as to a host that is cut off, stumbles over it
            # ("Cannot change state of expiring Timeout"), and Dask would leave the cluster half closed and say nothing.
            await asyncio.sleep(deadlines.EXIT)
            await Server.close(self.scheduler)  # type: ignore[arg-type]  # there is one
            self.shutdown_scheduler, self.status = False, Status.running
            await super()._close()  # type: ignore[no-untyped-call]


class LocalNanny(Nanny):
    """A nanny inside the kernel's process that leaves the kernel's own environment as it found it.

    Dask's nanny writes OMP_NUM_THREADS=1 and PYTHONHASHSEED into `os.environ` of the process it lives in, which
    would leave torch in the *notebook* with a single thread.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with dask.config.set(_QUIET):
            super().__init__(*args, **{"worker_class": LocalWorker, **kwargs})
            self.config = deepcopy(self.config)  # for every worker to come: its inner dicts are still Dask's own
        own = {name: str(self.nthreads) for name in _THREAD_VARIABLES if name not in os.environ}
        self.pre_spawn_env = {**self.pre_spawn_env, **own}
        self.pre_spawn_env.pop("MALLOC_TRIM_THRESHOLD_", None)  # preparation.py says why
        self._leader: int | None = None  # the last worker's process
        self._wished = {**self.env, **self.pre_spawn_env}
        self._wished.pop("MALLOC_TRIM_THRESHOLD_", None)
        self.ended_with: deque[str] = deque(maxlen=1000)  # the keys of the tasks in which workers died
        self._items: int | None = None
        if sys.platform == "linux":  # a file without a name, in which the worker notes them
            self._items = os.memfd_create("labkit-items")
            self._close_items = weakref.finalize(self, os.close, self._items)
            self._wished[RECORD] = f"/proc/{os.getpid()}/fd/{self._items}"

    async def listen(self, *args: Any, **options: Any) -> None:
        await super().listen(*args, **options)  # type: ignore[no-untyped-call]
        turn_away_the_silent(self)

    async def instantiate(self) -> Any:
        method = "spawn" if "CUDA_VISIBLE_DEVICES" in self._wished else start_method(_counts(self.nthreads))
        # a forked process has the variables of its template, which may be older than those of the kernel
        self.env = {**(os.environ if method == "forkserver" else {}), **self._wished}
        with _borrowed(self.pre_spawn_env, method):
            status = await super().instantiate()
        self._leader = self.pid or self._leader
        return status

    def _on_worker_exit_sync(self, exitcode: Any) -> None:
        end_group(self._leader)  # the processes that its tasks have started
        if self._items is not None and self._close_items.alive:
            self.ended_with.extend(recorded(self._items))
        super()._on_worker_exit_sync(exitcode)  # type: ignore[no-untyped-call]

    def close_gracefully(self, reason: str = "nanny-close-gracefully") -> None:
        # Called as its worker closes by itself: a task may have told it to, and the lab would be without it for good.
        if not any(isinstance(it, OwnCluster) and it.wants(self) for it in SpecCluster._instances):
            super().close_gracefully(reason)

    async def close(self, timeout: float | None = 10.0, reason: str = "nanny-close") -> Any:
        # A worker in the middle of a task would wait for its end; whoever closes a lab wants it closed.
        impatience = asyncio.get_running_loop().call_later(deadlines.EXIT, _kill, self.pid)
        try:
            return await super().close(timeout or 10.0, reason)
        finally:
            impatience.cancel()
            if self._items is not None:
                self._close_items()


def _counts(threads: int) -> dict[str, str]:
    """The variables by which libraries count their threads, for a worker with so many."""
    return {name: os.environ.get(name) or str(threads) for name in _THREAD_VARIABLES}


def _kill(pid: int | None) -> None:
    if pid is not None:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()


_starting = 0  # nannies that are starting a process now; all of them live on one event loop
_afterwards = ExitStack()


@contextmanager
def _borrowed(variables: Iterable[str], method: str) -> Iterator[None]:
    """Put environment and configuration back when the last of the nannies that start at the same time has started."""
    global _starting
    if _starting == 0:
        _afterwards.enter_context(_restored(variables))
        # Daemonic workers could have no children, and a DataLoader with num_workers > 0 would fail on them.
        own = {"distributed.worker.daemon": False, _METHOD: method, LOGS: BRIEF[LOGS]}
        _afterwards.enter_context(dask.config.set(own))
    _starting += 1
    try:
        yield
    finally:
        _starting -= 1
        if _starting == 0:
            _afterwards.close()


@contextmanager
def _restored(variables: Iterable[str]) -> Iterator[None]:
    """Put these variables of the environment back at the end of the block."""
    before = {name: os.environ.get(name) for name in variables}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# -- the template of workers that come back

# torch.optim imports the compiler when the first optimiser is made; and ranks of a training import labkit's engine
_IMPORTED = (
    "labkit.cluster.lifeline",  # first, so that the template can be ended while it imports
    "torch",
    "torch._dynamo",
    "torch.distributed.nn",
    "distributed.nanny",
    "labkit.engines.distributed.train_rank",
    __name__,
)
_OF_SCRIPTS = ("sklearn.datasets", "matplotlib.pyplot", "pandas", "torchvision")
_made_with: dict[str, str] | None = None  # the variables of the running template that libraries read as they load


def start_method(variables: Mapping[str, str]) -> str:
    """How a worker with these variables is started: "forkserver" where the template was made with them, else "spawn".

    Numerical libraries count their threads when they are loaded, which the template has done.
    """
    return "forkserver" if _made_with == variables else "spawn"


def _start_template(variables: Mapping[str, str]) -> None:
    """Start the template, which then imports for seconds in the background; harmless where there is one.

    It begins while the first workers import the same, so that it takes nothing from a run that comes later.
    """
    global _made_with
    if sys.platform != "linux" or _made_with is not None:
        return
    with dask.config.set({_METHOD: "forkserver"}):
        get_mp_context()  # names the modules that Dask wishes for, and only once
    multiprocessing.set_forkserver_preload([*_IMPORTED, *_of_script()])
    with _restored(variables):
        os.environ.update(variables)
        multiprocessing.forkserver.ensure_running()
    _made_with = dict(variables)


def _of_script() -> list[str]:
    """What takes long to import and stands at the top of a script: every process that it starts imports that again."""
    script = hasattr(sys.modules["__main__"], "__file__")
    return [name for name in _OF_SCRIPTS if script and name in sys.modules]
