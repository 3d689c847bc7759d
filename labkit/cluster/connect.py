"""`connect`: a handle on local processes, GPUs, an address, a classroom's gateway, or anything that gives a client."""

from __future__ import annotations

import atexit
import os
import threading
from typing import Any

from distributed import Client

from labkit.cluster.display import waiting_for
from labkit.cluster.gateway import open_gateway, require_only_size
from labkit.cluster.lab import Lab
from labkit.cluster.local import open_gpus, open_local
from labkit.cluster.remote import adopt, open_address, open_ssh
from labkit.cluster.workers import WorkerRequest
from labkit.errors import ConnectError, SettingError

UNDERSTOOD = (
    'nothing at all (local processes), "gpu", "tcp://host:8786", "tls://host:8786", "ssh://user@host1,host2", '
    '"gateway", a distributed.Client, or an object with get_client()'
)

# (process, target) -> lab; a forked child must not use its parent's
_labs: dict[tuple[int, Any], Lab] = {}
_connecting = threading.RLock()  # threads that connect at once get one lab


def connect(
    target: Any = None,
    *,
    workers: int | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    security: Any = None,
    timeout: float = 10.0,
) -> Lab:
    """A running Dask cluster; the same one for every call of this kernel with the same `target`.

    `target` is nothing (processes on this machine, reachable from this machine only), "gpu" (one process per GPU),
    "tcp://host:8786", "tls://host:8786", "ssh://user@host1,host2", "gateway", a `distributed.Client`, or any object
    with `get_client()`. `workers` is their number (by default one per usable core or GPU; when asked again with
    another number, a cluster that this kernel started is scaled to it), `threads` per worker (1), `memory` per
    worker in bytes or as "2 GiB" (an even share of what may be used), `security` for "tls://…" the folder that
    `python -m labkit certificates` has written, or a `distributed.Security`, and `timeout` seconds within which
    something must answer.

    Processes that this kernel starts on this machine talk over TLS with certificates that no other user can read. Over
    "tcp://…" to another machine nothing is encrypted: `launch` and training are refused there unless you say
    security=False.

    Raises ConnectError when no cluster answers or can be started, SettingError for an argument out of range, and
    MissingPackage when "ssh://…" or "gateway" lacks its package.

    >>> lab = lk.connect(workers=2)     # doctest: +SKIP
    >>> lab                             # doctest: +SKIP
    Lab: 2 workers × 1 thread, local
    >>> lk.connect() is lab             # doctest: +SKIP
    True
    """
    request = WorkerRequest.of(workers, threads, memory, security, timeout)
    with _connecting:
        for stale in [key for key, lab in _labs.items() if lab.closed]:
            _labs.pop(stale).let_go()
        key = (os.getpid(), target if isinstance(target, str | None) else id(target))
        if key in _labs:
            _adapt(_labs[key], request)
        else:
            what = (
                "Starting worker processes"
                if isinstance(target, str | None) and target in (None, "gpu")
                else "Connecting"
            )
            with waiting_for(what):
                _labs[key] = _open(target, request)
        return _labs[key]


def _open(target: Any, request: WorkerRequest) -> Lab:
    match target:
        case None:
            return open_local(request)
        case "gpu":
            return open_gpus(request)
        case "gateway":
            return open_gateway(request)
        case str() if target.startswith(("tcp://", "tls://")):
            return open_address(target, request)
        case str() if target.startswith("ssh://"):
            return open_ssh(target, request)
        case Client():
            return adopt(target, request)
        case _ if callable(getattr(target, "get_client", None)):
            return adopt(target, request)
    raise ConnectError(f"lk.connect({target!r}) is not understood: give {UNDERSTOOD}.")


def _adapt(lab: Lab, request: WorkerRequest) -> None:
    """Make a running lab what `request` asks for, or say why it cannot be."""
    if lab.kind == "gateway":
        require_only_size(request)
    workers = lab.workers
    same = (
        request.threads in (None, *(worker.threads for worker in workers))
        and request.memory in (None, *(worker.memory for worker in workers))
        and (request.security is None or request.security.require_encryption == lab.client.security.require_encryption)
    )
    if not same:
        raise SettingError(f"{lab!r} runs with other threads, memory or security: call lab.close() first.")
    if request.workers not in (None, len(workers)):
        lab.scale(request.workers)


@atexit.register
def close_all() -> None:
    """Close every lab of this process; registered after Dask's own exit handlers, so it runs before them."""
    for (process, _), lab in list(_labs.items()):
        if process == os.getpid():
            lab.close()
