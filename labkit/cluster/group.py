"""The default process group of one rank: made on the worker's own address, and gone again without a trace."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from labkit.cluster import sockets
from labkit.cluster.reports import Order
from labkit.errors import GangError

LINGER = 0.1  # seconds between a goodbye and the end of the sockets


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
        """End what this rank waits for in a collective; from any thread.

        torch cannot abort a gloo collective, but gloo ends it when it finds its connections at their end. Only the
        reading half may be shut: a send that fails before gloo looks would wait for its time limit (a write that ends
        in EPIPE is queued, and `signalException` in gloo/transport/tcp/pair.cc forgets what is queued).
        """
        sockets.shut(socket.SHUT_RD, self._ports(), self._doors)

    def leave(self, *, cleanly: bool) -> None:
        """Destroy the group; unless `cleanly`, without waiting for operations that are still going on."""
        if not self._joined:
            return
        import torch.distributed as dist

        if not cleanly:
            self._say_goodbye()
        last, linger = [self._world()], 0.0 if cleanly else LINGER
        if dist.is_initialized():  # the function may have destroyed it
            dist.destroy_process_group()
        # gloo takes 20 ms to end its thread, which nobody needs to wait for
        threading.Thread(target=self._free, args=(last, linger), name="labkit-free", daemon=True).start()

    def _say_goodbye(self) -> None:
        """Let the other ranks see the end of their connections to this one, while they can still write to it."""
        sockets.shut(socket.SHUT_WR, self._ports(), self._doors)

    def _free(self, last: list[Any], linger: float) -> None:
        time.sleep(linger)
        last.clear()
        for generation in range(3):  # DistributedDataParallel holds its group in a reference cycle, mostly a young one
            if self._world() is not None:
                gc.collect(generation)
        if self._world() is not None:
            self._say_goodbye()  # a global variable of the function holds the group; its peers must not wait for it

    def _ports(self) -> set[int]:
        return sockets.listening() - self._before
