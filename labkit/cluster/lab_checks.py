"""Lab checks: whether a running cluster, here or elsewhere, has what this kernel's work needs."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from distributed import Client

from labkit.cluster import deadlines
from labkit.cluster.findings import Check, looked
from labkit.cluster.machine import other_people
from labkit.cluster.memory import MORE_ROOM
from labkit.cluster.versions import NECESSARY, USUAL, differences
from labkit.text import in_words, some

_SKEW = 1.0  # seconds between two clocks that nobody minds
_EVERYWHERE = ("0.0.0.0", "::")
_SHOWN = 3  # of many alike


def _workers(client: Client) -> Check:
    workers = _told(client)["workers"].values()
    if not workers:
        remedy = "look at the log of whoever starts them, a batch system or Dask Gateway, or start some."
        return Check("workers", "fail", "none", remedy)
    found, full = some(len(workers), "worker"), sum(it["status"] == "paused" for it in workers)
    if full:
        said = f"{found}, of which {full} begin nothing more: their memory is used up"
        return Check("workers", "warn", said, MORE_ROOM)
    return Check("workers", "ok", found)


def _versions(client: Client) -> Check:
    everything = differences(client, NECESSARY + USUAL)
    needed = [it for it in everything if it.package in NECESSARY]
    found = needed or everything
    if not found:
        return Check("versions", "ok", f"{', '.join(NECESSARY + USUAL)} agree")
    shown = "; ".join(map(str, found[:_SHOWN])) + ("; …" if len(found) > _SHOWN else "")
    return Check("versions", "fail" if needed else "warn", shown, found[0].remedy)


def _torch(client: Client) -> Check:
    """It is really imported, in a process of its own: where that fails, it may take the process along."""
    answers = _ask(client, _importing_torch())
    broken = {at: why for at, why in answers.items() if why}
    if broken:
        at, why = next(iter(broken.items()))
        found = f"cannot be imported on {some(len(broken), 'worker')}, such as {at}: {why}"
        return Check("torch there", "fail", found, "install torch anew into the environment of the workers.")
    return Check("torch there", "ok", f"imported on {some(len(answers), 'worker')}")


def _disks(client: Client) -> Check:
    broken = {at: why for at, why in _ask(client, _writing_a_file()).items() if why}
    if broken:
        at, why = next(iter(broken.items()))
        found = f"no file can be written on {some(len(broken), 'worker')}, such as {at}: {why}"
        return Check("disks there", "fail", found, "empty the folder for temporary files there, or set TMPDIR.")
    return Check("disks there", "ok", "files can be written")


def _clocks(client: Client) -> Check:
    """Half of the time that a question takes is counted for its answer's way back."""
    skews = {}
    for at in _told(client)["workers"]:
        begun = time.time()
        answer = _ask(client, time.time, workers=[at])
        if isinstance(answer.get(at), float):
            skews[f"worker {at}"] = answer[at] - (begun + time.time()) / 2
    if not skews:
        return Check("clocks", "warn", "no worker told its time", "look at the workers.")
    place, skew = max(skews.items(), key=lambda each: abs(each[1]))
    found = f"the clock of {place} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this one"
    if abs(skew) > _SKEW:
        remedy = "let all machines keep time (timedatectl set-ntp true): certificates and times in logs would be wrong."
        return Check("clocks", "warn", found, remedy)
    return Check("clocks", "ok", f"agree to {_SKEW:g} s")


def _addresses(client: Client) -> Check:
    """Ranks meet at the addresses of their workers."""
    told = _told(client)
    hosts = Counter(str(urlsplit(at).hostname) for at in told["workers"])
    machines = set(_ask(client, socket.gethostname).values())
    shown = ", ".join(f"{host} ({count})" for host, count in sorted(hosts.items())[:_SHOWN])
    if len(machines) > 1 and any(host.startswith("127.") or host == "::1" for host in hosts):
        found = (
            f"workers of {some(len(machines), 'machine')} are known by an address of their own machine alone: {shown}"
        )
        return Check("addresses", "fail", found, "start each with --host and its address in the common network.")
    return Check("addresses", "ok", f"ranks will meet at {shown}" if shown else "no worker")


def _encryption(client: Client) -> Check:
    address = str(client.scheduler.address) if client.scheduler else ""
    if address.startswith(("tls://", "inproc://", "gateway")):
        return Check(
            "encryption", "ok", f"{address.partition(':')[0]}://, Dask's own traffic alone: not what ranks send"
        )
    own = urlsplit(address).hostname in ("127.0.0.1", "::1", "localhost")
    others = other_people() if own else ()
    if own and not others:
        return Check("encryption", "ok", "none, and nobody else has an account on this machine")
    who = f"{some(len(others), 'other user')} of this machine" if own else "whoever reaches its network"
    return Check(
        "encryption", "warn", f"{address} has none, so {who} can run code as you", "use tls:// with security=."
    )


def _pages(client: Client) -> Check:
    """Dask's programs show pages, without a password or encryption, at all addresses unless they are told not to."""
    if not (ports := pages_for_all(client)):
        return Check("pages", "ok", "none for other machines")
    found = f"port {', '.join(map(str, ports[:_SHOWN]))} of its programs shows pages to whoever reaches the machine"
    return Check("pages", "warn", found, "start scheduler and workers with --dashboard-address 127.0.0.1:0.")


def pages_for_all(client: Client) -> list[int]:
    """The ports at which scheduler and workers listen on all addresses of their machine."""
    asked = [client.run_on_scheduler(_listening()), *_ask(client, _listening()).values()]
    return sorted({port for each in asked if isinstance(each, list) for host, port in each if host in _EVERYWHERE})


def _told(client: Client) -> dict[str, Any]:
    scheduler: Any = client.scheduler
    found: dict[str, Any] = client.sync(scheduler.identity, n_workers=-1, callback_timeout=deadlines.ANSWER)
    return found


def _ask(client: Client, function: Callable[[], Any], workers: list[str] | None = None) -> dict[str, Any]:
    """What each worker answers, an exception where it raised one, as text."""
    answers: dict[str, Any] = client.sync(
        client._run,
        function,
        workers=workers,
        on_error="return",
        callback_timeout=deadlines.PRELOAD + deadlines.ANSWER,
    )
    return {at: in_words(it) if isinstance(it, Exception) else it for at, it in answers.items()}


# -- what workers do that may lack labkit: functions within functions travel by value


def _importing_torch() -> Callable[[], Any]:
    limit = deadlines.PRELOAD

    async def imported() -> str:
        import asyncio
        import sys

        command = (sys.executable, "-c", "import torch")
        tried = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, said = await asyncio.wait_for(tried.communicate(), limit)
        return (said.decode().strip().splitlines() or ["no reason given"])[-1] if tried.returncode else ""

    return imported


def _writing_a_file() -> Callable[[], str]:
    def written() -> str:
        import tempfile

        try:
            with tempfile.TemporaryFile() as file:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError as error:
            return str(error)
        return ""

    return written


def _listening() -> Callable[[], list[tuple[str, int]]]:
    def listening() -> list[tuple[str, int]]:
        import psutil

        sockets = psutil.Process().net_connections("inet")
        return [(it.laddr.ip, it.laddr.port) for it in sockets if it.status == psutil.CONN_LISTEN]

    return listening


_EXAMINATIONS: Mapping[str, Callable[[Client], Check]] = {
    "workers": _workers,
    "versions": _versions,
    "torch there": _torch,
    "disks there": _disks,
    "clocks": _clocks,
    "addresses": _addresses,
    "encryption": _encryption,
    "pages": _pages,
}
"""By the name of what they find."""


def examined(client: Client) -> list[Check]:
    """All findings about a cluster; what cannot be asked is a finding too."""
    remedy = "look whether scheduler and workers still run, and connect again."
    return [looked(name, partial(examine, client), remedy) for name, examine in _EXAMINATIONS.items()]
