"""The default process group of one rank: made on the worker's own address, and gone again without a trace."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from labkit.cluster import sockets
from labkit.cluster.channels import Order
from labkit.errors import GangError

LOOK = 0.02  # seconds in which gloo finds that a connection is at its end
LINGER = 0.3  # seconds in which the other ranks do


class Group:
    """A process may have one at a time; what it listens on since this was made belongs to the group."""

    def __init__(self) -> None:
        self._before = sockets.listening()
        self._joined = False
        self._doors: set[tuple[str, int]] = set()  # what the other ranks listen on
        self._world: Callable[[], Any] = lambda: None

    @staticmethod
    def require_none() -> None:
        """Raise GangError when the process has a group that somebody else made."""
        import torch.distributed as dist

        if dist.is_initialized():
            raise GangError("the worker has a process group that some task left behind: lab.restart_workers() ends it.")

    def join(self, order: Order, rank: int, port: int, door: socket.socket | None) -> None:
        """Meet the other ranks at `port` of rank 0's worker, who brings the `door` that listens there."""
        import torch
        import torch.distributed as dist
        import torch.distributed.nn  # its default arguments would keep the group that exists at its first import

        size, limit = len(order.workers), timedelta(seconds=order.timeout)
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(order.local_ranks[rank]),
            # gloo would listen on whatever address the machine's own name stands for
            "GLOO_SOCKET_IFNAME": sockets.interface_of(sockets.host_of(order.workers[rank])),
        }
        self._joined = True
        store = dist.TCPStore(  # type: ignore[attr-defined]
            sockets.host_of(order.workers[0]),
            port,
            size,
            is_master=door is not None,
            timeout=limit,
            wait_for_workers=False,
            master_listen_fd=door.detach() if door is not None else None,  # else it would listen on every interface
        )
        dist.init_process_group(order.backend, store=store, rank=rank, world_size=size, timeout=limit)
        self._world = weakref.ref(dist.group.WORLD)
        # This exchange also sees to it that nobody goes, and takes the store along, before everybody has come.
        ports = [torch.zeros(2, dtype=torch.int64) for _ in order.workers]
        dist.all_gather(ports, torch.tensor([*self._ports(), 0][:2]))  # one for gloo, and one more for rank 0's store
        hosts = map(sockets.host_of, order.workers)
        self._doors = {(host, port) for host, pair in zip(hosts, ports, strict=True) for port in pair.tolist() if port}

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

    def _hang_up(self, *directions: int, then: Callable[[], None] | None = None) -> None:
        """Shut the connections to the other ranks one direction after the other, and close them some time later.

        torch cannot abort a gloo collective, but gloo ends it when it finds a connection at its end. It must find it
        by reading: a write that fails first is queued and forgotten, and waits for its time limit (gloo's
        transport/tcp/pair.cc, `write` and `signalException`). So connections stay open until both sides have looked.
        """
        held = sockets.connections(self._ports(), self._doors)
        # no daemon: one that the end of the process catches inside torch would abort it
        threading.Thread(target=_fade, args=(held, directions, then), name="labkit-fade", daemon=False).start()

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
        return sockets.listening() - self._before


def _fade(held: list[socket.socket], directions: Sequence[int], then: Callable[[], None] | None) -> None:
    for direction in directions:
        for connection in held:
            with suppress(OSError):  # the other side was quicker
                connection.shutdown(direction)
        time.sleep(LOOK)
    if then is not None:
        then()
    time.sleep(LINGER)
    for connection in held:
        connection.close()
