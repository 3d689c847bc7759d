"""Dask Gateway: a cluster that a classroom's gateway starts, on whichever machines it has, for this kernel alone.

A student's other notebooks have others: each cluster bears the name of its kernel, so that one that was restarted finds
its own again, and nobody closes a cluster that another one computes on.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import dask.config

from labkit.cluster import deadlines
from labkit.cluster.lab import Lab
from labkit.cluster.remote import furnish
from labkit.cluster.workers import WorkerInfo, WorkerRequest
from labkit.errors import ConnectError, LabkitError, MissingPackage, SettingError
from labkit.text import some

_WORKERS = 2  # where nobody says how many
_LINES = 12  # of a log, in an error
_AS_ADVISED = "ask whoever runs this hub"


def open_gateway(request: WorkerRequest) -> Lab:
    """This kernel's cluster at the Dask Gateway that the environment names, as on a classroom's JupyterHub."""
    try:
        import dask_gateway
    except ImportError as error:
        raise MissingPackage('"gateway" needs dask-gateway: pip install "labkit[classroom]".') from error
    require_only_size(request)
    try:
        gateway = dask_gateway.Gateway()
    except ValueError as error:
        raise ConnectError(
            f"no Dask Gateway is known here ({error}): set DASK_GATEWAY__ADDRESS, or {_AS_ADVISED}."
        ) from error
    try:
        return furnish(_open(gateway, request))
    finally:
        release(gateway)


def _open(gateway: Any, request: WorkerRequest) -> GatewayLab:
    lab, name = None, ""
    try:
        options, own = _own_options(gateway)
        lab = _found_again(gateway, own)
        if lab is None:
            name = str(gateway.submit(options))
            lab = _joined(gateway, name)
        lab.scale(request.workers or max(_WORKERS, len(lab.known())))
    except BaseException as error:
        written = last_lines(gateway, name) if name else ""
        if name:
            _stop(gateway, name)
        if lab is not None:
            lab.let_go()
        if isinstance(error, LabkitError) or not isinstance(error, Exception):
            raise
        raise ConnectError(_why_not(gateway.address, error, written)) from error
    return lab


def _found_again(gateway: Any, own: str) -> GatewayLab | None:
    """A lab on the cluster that this kernel had before it was restarted, or before the Gateway was."""
    limit = time.monotonic() + deadlines.ARRIVAL
    while own and (found := [it.name for it in gateway.list_clusters() if it.options.get("kernel") == own]):
        try:
            with dask.config.set({"distributed.comm.timeouts.connect": f"{deadlines.HANDSHAKE} s"}):
                return _joined(gateway, found[0])
        except OSError:  # its scheduler has gone, as the Gateway will know, or the way to it is not open again yet
            if time.monotonic() > limit:
                raise
            time.sleep(deadlines.CLIENT_POLL)
    return None


def _joined(gateway: Any, name: str) -> GatewayLab:
    cluster = gateway.connect(name)  # which ends nothing by itself, also when it is lost and collected
    try:
        return GatewayLab(cluster.get_client(), kind="gateway", cluster=cluster, owned=True)
    except BaseException:
        _leave(cluster)
        raise


def require_only_size(request: WorkerRequest) -> None:
    """Raise SettingError for more than a number of workers."""
    if request.threads is not None or request.memory is not None or request.security is not None:
        raise SettingError(
            "the Gateway says how large a worker is, and its clusters have certificates of their own: leave threads=, "
            "memory= and security= out."
        )


def _own_options(gateway: Any) -> tuple[Any, str]:
    """The options of a cluster of this kernel's, and the name in them; none at a Gateway that keeps no names."""
    options = gateway.cluster_options()
    if "kernel" not in options:
        return options, ""
    options.kernel = kernel_name(os.getpid())
    return options, options.kernel


@cache
def kernel_name(pid: int) -> str:
    """What tells the kernel of this process from all others: Jupyter's number, which a restart leaves as it is.

    >>> kernel_name(os.getpid()) == kernel_name(os.getpid())
    True
    """
    application = getattr(sys.modules.get("ipykernel.kernelapp"), "IPKernelApp", None)
    if application is not None and application.initialized():
        return f"{socket.gethostname()} {Path(application.instance().connection_file).stem}"
    return f"{socket.gethostname()} {pid} {uuid.uuid4().hex}"


def _stop(gateway: Any, name: str) -> None:
    """End a cluster; where that cannot be, it ends once it has been idle for as long as the Gateway says."""
    with suppress(Exception):  # it has ended by itself, or nobody answers
        gateway.stop_cluster(name)


def _leave(cluster: Any) -> None:
    """Have no connection to a cluster any more; it goes on."""
    cluster.close(shutdown=False)
    release(cluster.gateway)


def release(gateway: Any) -> None:
    """Close a `dask_gateway.Gateway` so that nothing happens when it is collected.

    Its `__del__` closes it again, which fails, or waits for ever for a lock, should it be collected just when Dask has
    that: as another one is made.
    """
    runner = getattr(gateway, "_loop_runner", None)
    if runner is not None:
        if runner.is_started():
            gateway.close()
        del gateway._loop_runner


def last_lines(gateway: Any, name: str) -> str:
    """The ends of what a cluster's scheduler and workers have written; nothing where the Gateway does not tell."""

    async def ask() -> Any:
        answer = await gateway._request("GET", f"{gateway.address}/api/v1/clusters/{name}/log")
        return await answer.json()

    try:
        told = gateway.sync(ask)
    except Exception:  # noqa: BLE001  dask-gateway's own backends know nothing of logs
        return ""
    lines = [line for line in str(told.get("log", "")).splitlines() if line.strip()]
    return "\n".join(lines[-_LINES:])


def _why_not(address: str, error: Exception, written: str) -> str:
    """The cause as far as it shows, with the end of the log."""
    status = getattr(error, "status", None)
    if status in (401, 403):
        return (
            f"the Dask Gateway at {address} does not let this kernel in: give it a name and a password with "
            f"DASK_GATEWAY__AUTH__KWARGS, start your server anew where a hub lets you in, or {_AS_ADVISED}."
        )
    if isinstance(error, OSError):  # aiohttp's, where nobody listens
        return f"no Dask Gateway answers at {address} ({error}): wait until it is back, or {_AS_ADVISED}."
    log = f" Its log ends:\n{written}" if written else ""
    return f"the Dask Gateway gave no cluster ({error}): {_AS_ADVISED}.{log}"


class GatewayLab(Lab):
    """A lab whose workers a Dask Gateway started for this kernel; `close` ends them."""

    _pages: bool | None = None  # whether its scheduler has any; the Gateway names their address anyway

    def scale(self, workers: int, timeout: float = deadlines.ARRIVAL) -> None:
        """Start or end workers until there are `workers`.

        Raises SettingError for more than the Gateway allows, and ConnectError, with what the workers wrote, if it takes
        more than `timeout` seconds.
        """
        self.require_open()
        before = len(self.known())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.cluster.scale(workers)
        if refused := [str(it.message) for it in said if "exceed" in str(it.message)]:
            self.cluster.scale(before)  # it has taken as many as it bears
            raise SettingError(f"the Gateway bears fewer workers ({refused[0].rstrip('.')}): ask for fewer.")
        limit = time.monotonic() + timeout
        while (there := len(self.known())) != workers:
            if time.monotonic() > limit or self.closed:
                written = last_lines(self.cluster.gateway, self.cluster.name)
                log = f" Its log ends:\n{written}" if written else ""
                raise ConnectError(
                    f"the Dask Gateway has {there} of {some(workers, 'worker')} after {timeout:g} s: ask for fewer, or "
                    f"{_AS_ADVISED}.{log}"
                )
            time.sleep(deadlines.TICK)

    def kill(self, worker: int | str | WorkerInfo) -> None:
        """Kill a worker's process, as a crash or a lack of memory does; a new one starts within seconds.

        `worker` is its number in `lab.workers`, its name, its address, or its row of that table. Raises SettingError
        for no such worker, and LabClosed.
        """
        workers = self.workers
        wanted = workers[worker].name if isinstance(worker, int) and 0 <= worker < len(workers) else worker
        wanted = str(getattr(wanted, "name", wanted))
        for it in workers:
            if wanted in (it.name, it.address):
                self.client.run(os.kill, it.pid, signal.SIGKILL, workers=[it.address], on_error="ignore")
                return
        raise SettingError(f"there is no worker {worker!r} in this lab: give a number below {len(workers)}.")

    def _end_cluster(self) -> None:
        _stop(self.cluster.gateway, self.cluster.name)
        _leave(self.cluster)

    def let_go(self) -> None:
        """Give up the connection to a cluster that goes on, if it does."""
        _leave(self.cluster)

    def slow(self, worker: int | str | WorkerInfo, factor: float) -> None:
        """Refused: what slows a worker down runs on the machine of the kernel. Raises SettingError."""
        raise SettingError("workers behind a Gateway cannot be slowed from here: use lk.connect(workers=2) for that.")

    def _dashboard(self, ask: Callable[[], dict[str, Any]]) -> str | None:
        if self._pages is None:
            self._pages = bool(self.client.run_on_scheduler(_has_pages))
        return str(self.cluster.dashboard_link) if self._pages else None


def _has_pages(dask_scheduler: Any) -> bool:
    return bool(dask_scheduler.http_application.applications)
