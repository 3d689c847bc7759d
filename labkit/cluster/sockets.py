"""Sockets of this process: opened on the worker's own address only, and broken from outside the library they serve."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from labkit.errors import GangError

_DESCRIPTORS = Path("/proc/self/fd") if Path("/proc/self/fd").is_dir() else Path("/dev/fd")


def host_of(address: str) -> str:
    """The host part of a Dask address.

    >>> host_of("tcp://10.0.0.7:40123"), host_of("tls://[fd00::2]:40123")
    ('10.0.0.7', 'fd00::2')
    """
    return address.partition("://")[2].rpartition(":")[0].strip("[]")


def open_door(host: str) -> socket.socket:
    """A listening socket on `host` alone, at a free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, backlog=1024)


def interface_of(host: str) -> str:
    """The name of the network interface that has the address `host`; raises GangError where none has."""
    interfaces: dict[str, Any] = psutil.net_if_addrs()
    for name, addresses in interfaces.items():
        if any(address.address.partition("%")[0] == host for address in addresses):
            return name
    raise GangError(f"no network interface here has the worker's address {host}: start it with its own --host.")


def listening() -> set[int]:
    """The TCP ports that this process listens on."""
    return {local[1] for _, local, remote in _tcp() if remote is None}


def connections(ports: set[int], doors: set[tuple[str, int]]) -> list[socket.socket]:
    """Duplicates of this process's connections that came in at one of its `ports`, or lead to one of the `doors` of
    others, (host, port). As long as a duplicate is open, so is the connection, whoever else closes it.
    """
    return [it.dup() for it, local, remote in _tcp() if remote is not None and (local[1] in ports or remote in doors)]


def _tcp() -> Iterator[tuple[socket.socket, tuple[str, int], tuple[str, int] | None]]:
    """Each TCP socket of this process (a duplicate, open until the next one), and both its ends; None: it listens."""
    for entry in _DESCRIPTORS.iterdir():
        try:
            if not stat.S_ISSOCK(entry.stat().st_mode):
                continue
            duplicate = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:  # closed meanwhile
            continue
        with duplicate:
            if duplicate.family in (socket.AF_INET, socket.AF_INET6) and duplicate.type == socket.SOCK_STREAM:
                with suppress(OSError):  # neither connected nor listening
                    listens = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    yield duplicate, _end(duplicate.getsockname()), None if listens else _end(duplicate.getpeername())


def _end(name: tuple[Any, ...]) -> tuple[str, int]:
    return str(name[0]).removeprefix("::ffff:"), int(name[1])  # an IPv4 address on a socket for both kinds
