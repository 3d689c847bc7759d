"""Clusters that run elsewhere: at an address, over SSH, or handed over by the user."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any
from urllib.parse import SplitResult, urlsplit

import psutil
from distributed import Client, Security
from distributed.comm.core import connect

from labkit.cluster import deadlines
from labkit.cluster.gang.queue_access import QueueAccess
from labkit.cluster.lab import Lab
from labkit.cluster.preparation import Preparation
from labkit.cluster.versions import differences
from labkit.cluster.workers import WorkerRequest
from labkit.errors import ConnectError, MissingPackage, SettingError

_LONGEST_GREETING = 1 << 20  # bytes
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def open_address(address: str, request: WorkerRequest) -> Lab:
    """The cluster whose scheduler answers at `address`, "tcp://host:port" or "tls://host:port"."""
    parts = _parse(address)
    if parts.port is None:
        raise ConnectError(f"{address!r} names no port: write it as {parts.scheme}://{parts.hostname}:8786.")
    _keep_size(request, address)
    found = _reach(parts, address, request)
    exposed = parts.scheme == "tcp" and request.security is None and not _is_own(found)
    if exposed:
        _warn_open(address)
    try:
        client = Client(address, security=request.security, timeout=request.timeout)
    except Exception as error:
        raise ConnectError(f"the scheduler at {address} did not take this kernel for a client: {error}.") from error
    return furnish(Lab(client, kind=parts.scheme, exposed=exposed))


def open_ssh(address: str, request: WorkerRequest) -> Lab:
    """A scheduler on the first host of "ssh://user@h1,h2:2222", workers on all (one each by default).

    Keys, ports and known hosts are those of ~/.ssh/config. Python must lie where this kernel's lies. Should the kernel
    be killed, the scheduler ends after an idle hour, and the workers a minute after it.
    """
    try:
        import_module("asyncssh")
        from distributed import SSHCluster
    except ImportError as error:
        raise MissingPackage('"ssh://…" needs asyncssh: pip install "labkit[ssh]".') from error
    hosts = [_parse(f"ssh://{host}") for host in address.removeprefix("ssh://").split(",")]
    each, rest = divmod(request.workers or len(hosts), len(hosts))
    if rest or not each:
        raise SettingError(f"workers={request.workers} cannot be spread over {len(hosts)} hosts: give a multiple.")
    if request.security is not None:
        raise SettingError("the workers of ssh://… talk over tcp://: leave security= out, or start a tls:// cluster.")
    options = [
        {"connect_timeout": request.timeout}
        | ({"username": user} if (user := host.username or hosts[0].username) else {})
        | ({"port": host.port} if host.port else {})
        for host in hosts
    ]
    names = [str(host.hostname) for host in hosts]
    here = all(name in _LOOPBACK for name in names)
    if not here:
        _warn_open(address)
    place = {"host": names[0], "dashboard_address": f"{names[0]}:0"} if here else {"dashboard_address": ":0"}
    memory = {"memory_limit": request.memory} if request.memory else {}
    workers = {"nthreads": request.threads or 1, "n_workers": each, "death_timeout": 60} | memory
    try:
        cluster = SSHCluster(
            [names[0], *names],
            connect_options=[options[0], *options],
            worker_options=workers | place,
            scheduler_options={"port": 0, "idle_timeout": "1 hour"} | place,
        )
    except Exception as error:
        raise ConnectError(
            f"no cluster could be started over {address} ({error}): try `ssh {names[0]}` in a terminal."
        ) from error
    return furnish(_complete(Lab(cluster.get_client(), kind="ssh", cluster=cluster, owned=True), each * len(hosts)))


def _complete(lab: Lab, count: int) -> Lab:
    """The lab with all its workers, for Dask waits for the first one on each host; closed where they do not come."""
    try:
        lab.client.wait_for_workers(count, timeout=deadlines.ARRIVAL)
    except BaseException as error:
        there = len(lab.workers)
        lab.close()
        if not isinstance(error, TimeoutError):
            raise
        raise ConnectError(
            f"{there} of {count} workers came within {deadlines.ARRIVAL:g} s: ask for fewer, or look at their hosts."
        ) from None
    return lab


def adopt(target: Any, request: WorkerRequest) -> Lab:
    """A lab on a `Client`, or on anything that gives one; the cluster stays its owner's."""
    _keep_size(request, f"this {type(target).__name__}")
    client = target if isinstance(target, Client) else target.get_client()
    if not isinstance(client, Client) or client.asynchronous:
        raise ConnectError(
            f"{type(target).__name__} gives no synchronous distributed.Client: make it with asynchronous=False."
        )
    if client.status != "running":
        raise ConnectError(
            f"the Client of this {type(target).__name__} is {client.status}: hand over one that is connected."
        )
    return furnish(Lab(client, kind="client", cluster=target, keep_client=client is target))


def furnish(lab: Lab) -> Lab:
    """Prepare the workers of a cluster that may have another environment than the kernel's."""
    try:
        _check_packages(lab.client)
        lab.client.register_plugin(Preparation())
        lab.client.sync(QueueAccess.of(lab.client).ready, lab.client)  # it looks after what others leave behind
    except BaseException:
        lab.close()
        raise
    return lab


def _check_packages(client: Client) -> None:
    """Raise ConnectError when the cluster could not run what this kernel sends."""
    if found := differences(client):
        raise ConnectError(f"{found[0]}: {found[0].remedy}")


def _parse(address: str) -> SplitResult:
    parts = urlsplit(address)
    if parts.password is not None:  # sentences and histories would repeat it
        raise ConnectError(f"a {parts.scheme}:// address has no room for a password: use a key, or security=.")
    try:
        whole = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        whole = False
    if not whole:
        raise ConnectError(f"{address!r} is no address: write it as {parts.scheme}://host:port.")
    return parts


def _reach(parts: SplitResult, address: str, request: WorkerRequest) -> str:
    """The IP address at which a Dask scheduler greets; raises ConnectError within the request's timeout.

    Dask itself waits for ever for the greeting of somebody who listens and says nothing.
    """
    deadline = time.monotonic() + request.timeout
    try:
        plain = socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=request.timeout)
    except socket.gaierror as error:
        raise ConnectError(f"no machine is called {parts.hostname!r}: check the address {address}.") from error
    except OSError as error:
        refused = isinstance(error, ConnectionRefusedError)
        why = "nothing listens" if refused else f"nothing answered within {request.timeout:g} s"
        raise ConnectError(
            f"{why} at {address}: is a Dask scheduler running there, and no firewall between?"
        ) from error
    with plain:
        peer = str(plain.getpeername()[0])
        plain.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            with _encrypted(plain, parts, request) as channel, channel.makefile("rb") as stream:
                greeting = stream.read(8)
        except ssl.SSLError as error:
            raise ConnectError(
                f"the encryption of {address} does not fit the certificates in security= ({error.reason}): use the "
                "cluster's own."
            ) from error
        except OSError as error:
            raise ConnectError(
                f"something listens at {address} but no Dask scheduler answers: check the port, and whether it is "
                f"{'tcp' if parts.scheme == 'tls' else 'tls'}:// there ({error})."
            ) from error
    # A scheduler speaks first, and every message begins with its length (distributed.comm.tcp).
    speaks = len(greeting) == 8 and int.from_bytes(greeting, sys.byteorder) <= _LONGEST_GREETING
    left = max(0.5, deadline - time.monotonic())
    if not speaks or not _is_scheduler(address, request.security or Security(), left):
        raise ConnectError(f"what listens at {address} is no Dask scheduler: check the port.")
    return peer


def _is_scheduler(address: str, security: Security, timeout: float) -> bool:
    """Whether a scheduler says who it is within so many seconds; others begin alike, as ZeroMQ does."""

    async def ask() -> Any:
        async with asyncio.timeout(timeout):
            channel = await connect(address, timeout=timeout, **security.get_connection_args("client"))
            try:
                await channel.write({"op": "identity", "reply": True})
                return await channel.read()
            finally:
                channel.abort()

    with ThreadPoolExecutor(1) as apart:  # a notebook's main thread has an event loop already
        try:
            answer = apart.submit(asyncio.run, ask()).result()
        except Exception:  # noqa: BLE001  whatever Dask makes of the bytes of somebody else
            return False
    return isinstance(answer, dict) and {"address", "workers"} <= answer.keys()


def _encrypted(plain: socket.socket, parts: SplitResult, request: WorkerRequest) -> socket.socket:
    if parts.scheme == "tcp":
        return plain
    security: Any = request.security or Security()
    context: ssl.SSLContext | None = security.get_connection_args("client").get("ssl_context")
    if context is None:
        raise ConnectError("tls:// needs the cluster's certificates: give their folder as security=.")
    return context.wrap_socket(plain, server_hostname=parts.hostname)


def _is_own(host: str) -> bool:
    """Whether this IP address is one of this machine's."""
    if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return True
    interfaces: dict[str, Any] = psutil.net_if_addrs()
    return any(host == address.address for addresses in interfaces.values() for address in addresses)


def _warn_open(address: str) -> None:
    warnings.warn(
        f"{address} is not encrypted, so whoever reaches its scheduler can run code as you: use tls:// with security=.",
        UserWarning,
        stacklevel=5,
    )


def _keep_size(request: WorkerRequest, whose: str) -> None:
    if request.workers is not None or request.threads is not None or request.memory is not None:
        raise SettingError(f"{whose} brings its own workers: leave workers=, threads= and memory= out.")
