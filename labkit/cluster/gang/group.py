"""The default process group of one rank: made on the worker's own address, and gone again without a trace.

Sockets are opened on that address only, and are broken from outside the library they serve.
"""

from __future__ import annotations

import gc
import os
import socket
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from labkit.cluster import deadlines
from labkit.cluster.gang.intruders import End, close_door, strangers
from labkit.errors import GangError

_DESCRIPTORS = Path("/proc/self/fd") if Path("/proc/self/fd").is_dir() else Path("/dev/fd")


@dataclass(frozen=True)
class GangSpec:
    """What every rank of one gang needs to know: `address` is where the gang hears its ranks, and names it;
    `workers` and `local_ranks` are by rank, `timeout` is in seconds.
    """

    address: str
    workers: tuple[str, ...]
    local_ranks: tuple[int, ...]
    backend: str
    timeout: float

    @classmethod
    def on(cls, address: str, workers: Sequence[str], gpus: Mapping[str, str], timeout: float) -> GangSpec:
        """The same for a gang on these workers; `gpus` maps workers to what each sees as its first GPU.

        NCCL needs a GPU for each rank alone; gloo is there in any case, for tensors on the CPU.
        """
        hosts = [host_of(worker) for worker in workers]
        used = {(host, gpus[worker]) for host, worker in zip(hosts, workers, strict=True) if worker in gpus}
        own = len(used) == len(workers)
        # A rank with its own GPU sees it as its first one, whatever its place on the host.
        local_ranks = [0 if own else hosts[:rank].count(host) for rank, host in enumerate(hosts)]
        return cls(address, tuple(workers), tuple(local_ranks), "cpu:gloo,cuda:nccl" if own else "gloo", timeout)


class ProcessGroup:
    """A process may have one at a time; what it listens on since this was made belongs to the group."""

    def __init__(self) -> None:
        self._before = _listening()
        self._joined = False
        self._listeners: set[tuple[str, int]] = set()  # of the other ranks
        self._world: Callable[[], Any] = lambda: None

    @staticmethod
    def require_none() -> None:
        """Raise GangError when the process has a group that somebody else made."""
        import torch.distributed as dist

        if dist.is_initialized():
            raise GangError("the worker has a process group that some task left behind: lab.restart_workers() ends it.")

    def join(self, spec: GangSpec, rank: int, port: int, listener: socket.socket | None) -> None:
        """Meet the other ranks at `port` of rank 0's worker, who brings the `listener` at that port."""
        import torch
        import torch.distributed as dist
        import torch.distributed.nn  # its default arguments would keep the group that exists at its first import

        size, limit = len(spec.workers), timedelta(seconds=spec.timeout)
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(spec.local_ranks[rank]),
            # gloo would listen on whatever address the machine's own name stands for
            "GLOO_SOCKET_IFNAME": _interface_of(host_of(spec.workers[rank])),
        }
        self._joined = True
        before = {(local, remote) for _, local, remote in _tcp()}
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host_of(spec.workers[0]),
            port,
            size,
            is_master=listener is not None,
            timeout=limit,
            wait_for_workers=False,
            # else it would listen on every interface
            master_listen_fd=listener.detach() if listener is not None else None,
        )
        # torch names groups by a counter, which it counts up before it can fail: a rank that has survived somebody's
        # death at this place would look under another name than a fresh worker, for ever.
        dist.distributed_c10d._world.group_count = 0
        hook = sys.excepthook  # torch puts another one around it each time, and never takes it away
        dist.init_process_group(spec.backend, store=store, rank=rank, world_size=size, timeout=limit)
        sys.excepthook = hook
        self._world = weakref.ref(dist.group.WORLD)
        intruders = self._put_out_strangers(before) if spec.backend == "gloo" else set()  # NCCL connects later
        # This exchange also sees to it that nobody goes, and takes the store along, before everybody has come.
        ports = [torch.zeros(2, dtype=torch.int64) for _ in spec.workers]
        try:
            # one port for gloo, and one more for rank 0's store
            dist.all_gather(ports, torch.tensor([*self._ports(), 0][:2]))
        except RuntimeError as error:
            if not intruders:
                raise
            raise GangError(
                f"another user of this machine (uid {min(intruders)}) came between the ranks while their process group "
                "was made, and was put out: start it again, and tell whoever runs this machine."
            ) from error
        hosts = map(host_of, spec.workers)
        self._listeners = {
            (host, port) for host, pair in zip(hosts, ports, strict=True) for port in pair.tolist() if port
        }

    def _put_out_strangers(self, before: set[tuple[End, End | None]]) -> set[int]:
        """Hang up on other users of this machine among the connections that were not there `before`, whom it returns,
        and let nobody in from now on.
        """
        ports, users, found = self._ports(), strangers(), set()
        for it, local, remote in _tcp():
            if remote is None:
                if local[1] in ports:
                    close_door(it)
            elif (local, remote) not in before and (remote, local) in users:
                found.add(users[remote, local])
                with suppress(OSError):  # it has gone by itself
                    it.shutdown(socket.SHUT_RDWR)
        return found

    def cut(self) -> None:
        """End what this rank waits for in a collective, and let the other ranks know; from any thread."""
        self._hang_up(socket.SHUT_RD, socket.SHUT_WR, then=self._abort)

    def leave(self, *, cleanly: bool) -> None:
        """Destroy the group; unless `cleanly`, with operations that are still going on."""
        if not self._joined:
            return
        import torch.distributed as dist

        world = [self._world()]
        directions = [socket.SHUT_WR] if cleanly else [socket.SHUT_RD, socket.SHUT_WR]
        self._hang_up(*directions, then=partial(self._free, world))
        if dist.is_initialized():  # the function may have destroyed it
            dist.destroy_process_group()

    def _hang_up(self, *directions: int, then: Callable[[], None]) -> None:
        """Shut the connections to the other ranks one direction after the other, and close them some time later.

        torch cannot abort a gloo collective, but gloo ends it when it finds a connection at its end. It must find it
        by reading: a write that fails first is queued and forgotten, and waits for its time limit (gloo's
        transport/tcp/pair.cc, `write` and `signalException`). So connections stay open until both sides have looked.
        """
        held = _connections(self._ports(), self._listeners)
        # no daemon: one that the end of the process catches inside torch would abort it
        threading.Thread(target=_shut, args=(held, directions, then), name="labkit-hang-up", daemon=False).start()

    def _abort(self) -> None:
        world = self._world()
        if world is not None:
            world.abort()  # NCCL ends by this what it does on GPUs; gloo takes no notice

    def _free(self, world: list[Any]) -> None:
        world.clear()  # takes gloo 20 ms
        for generation in range(3):  # a model in a reference cycle, mostly a young one, holds its group with it
            if self._world() is not None:
                gc.collect(generation)

    def _ports(self) -> set[int]:
        return _listening() - self._before


def _shut(held: list[socket.socket], directions: Sequence[int], then: Callable[[], None]) -> None:
    for direction in directions:
        for connection in held:
            with suppress(OSError):  # the other side was quicker
                connection.shutdown(direction)
        time.sleep(deadlines.CLOSE_SEEN)
    then()
    time.sleep(deadlines.CLOSE_SEEN_BY_ALL)
    for connection in held:
        connection.close()


# -- sockets of this process


def host_of(address: str) -> str:
    """The host part of a Dask address.

    >>> host_of("tcp://10.0.0.7:40123"), host_of("tls://[fd00::2]:40123")
    ('10.0.0.7', 'fd00::2')
    """
    return address.partition("://")[2].rpartition(":")[0].strip("[]")


def listen(host: str) -> socket.socket:
    """A listening socket on `host` alone, at a free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, backlog=1024)


def _interface_of(host: str) -> str:
    """The name of the network interface that has the address `host`; raises GangError where none has."""
    interfaces: dict[str, Any] = psutil.net_if_addrs()
    for name, addresses in interfaces.items():
        if any(address.address.partition("%")[0] == host for address in addresses):
            return name
    raise GangError(f"no network interface here has the worker's address {host}: start it with its own --host.")


def _listening() -> set[int]:
    """The TCP ports that this process listens on."""
    return {local[1] for _, local, remote in _tcp() if remote is None}


def _connections(ports: set[int], listeners: set[tuple[str, int]]) -> list[socket.socket]:
    """Duplicates of this process's connections that came in at one of its `ports`, or lead to one of the `listeners`
    of others, (host, port). As long as a duplicate is open, so is the connection, whoever else closes it.
    """
    return [
        it.dup() for it, local, remote in _tcp() if remote is not None and (local[1] in ports or remote in listeners)
    ]


def _tcp() -> Iterator[tuple[socket.socket, End, End | None]]:
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


def _end(name: tuple[Any, ...]) -> End:
    return str(name[0]).removeprefix("::ffff:"), int(name[1])  # an IPv4 address on a socket for both kinds
