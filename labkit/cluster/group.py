"""The default process group of one rank: made on the worker's own address, and gone again without a trace."""

from __future__ import annotations

import gc
import os
import socket
import threading
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from labkit.cluster import sockets
from labkit.cluster.reports import Order
from labkit.errors import GangError


class Group:
    """A process may have one at a time; what it listens on since this was made belongs to the group."""

    def __init__(self) -> None:
        self._before = sockets.listening()
        self._joined = False
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
        dist.all_reduce(torch.zeros(1))  # nobody goes, and takes the store along, before everybody has come

    def cut(self) -> None:
        """Break the connections to the other ranks; from any thread."""
        sockets.shut(self._ports())

    def leave(self, *, cleanly: bool) -> None:
        """Destroy the group; unless `cleanly`, without waiting for operations that are still going on."""
        if not self._joined:
            return
        import torch.distributed as dist

        ports = self._ports()
        if not cleanly:
            sockets.shut(ports)  # else a pending operation keeps its sockets, and its peers wait
        last = [self._world()]
        if dist.is_initialized():  # the function may have destroyed it
            dist.destroy_process_group()
        # gloo takes 20 ms to end its thread, which nobody needs to wait for
        threading.Thread(target=self._free, args=(last, ports), name="labkit-free", daemon=True).start()

    def _free(self, last: list[Any], ports: set[int]) -> None:
        last.clear()
        for generation in range(3):  # DistributedDataParallel holds its group in a reference cycle, mostly a young one
            if self._world() is not None:
                gc.collect(generation)
        if self._world() is not None:
            sockets.shut(ports)  # a global variable of the function holds the group; its peers must not wait for it

    def _ports(self) -> set[int]:
        return sockets.listening() - self._before
