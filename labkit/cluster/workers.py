"""Workers: those that somebody asks for, those that a lab has, and what a map or a launch needs of that lab."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dask.utils import parse_bytes
from distributed import Security

from labkit.checks import number, whole
from labkit.cluster import deadlines
from labkit.cluster.certificates import security_in, temporary_security
from labkit.cluster.kernel_settings import KernelSettings
from labkit.cluster.machine import gpu_memory, visible_gpus
from labkit.cluster.under_way import Handle
from labkit.errors import SettingError
from labkit.text import Table, amount


@dataclass(frozen=True)
class WorkerInfo:
    """One worker: `memory` in bytes (0: no limit), `gpus` the device names it may see."""

    name: str
    address: str
    threads: int
    memory: int
    pid: int
    gpus: tuple[str, ...] = ()


class Workers(tuple[WorkerInfo, ...]):
    """The workers of a lab in the order of their names; prints as a table."""

    __slots__ = ()

    @classmethod
    def ordered(cls, workers: Iterable[WorkerInfo]) -> Workers:
        """Sort by name, numbers as numbers."""
        return cls(sorted(workers, key=lambda worker: (len(worker.name), worker.name)))

    def __repr__(self) -> str:
        head = ("name", "threads", "memory", "gpus", "pid", "address")
        rows = [
            (it.name, str(it.threads), memory_limit(it.memory), ",".join(it.gpus) or "-", str(it.pid), it.address)
            for it in self
        ]
        return repr(Table(head, rows, left=len(head)))


def memory_limit(nbytes: int) -> str:
    """The memory that a worker may use, for people.

    >>> memory_limit(3 << 29), memory_limit(0)
    ('1.5 GiB', 'no limit')
    """
    return amount(nbytes, binary=True) if nbytes else "no limit"


def responding(known: Mapping[str, Mapping[str, Any]], addresses: Iterable[str]) -> list[str]:
    """Those of the addresses whose workers, as the scheduler knows them, have sent word of late.

    >>> responding({"a": {"last_seen": 100.0}, "b": {"last_seen": 40.0}}, ["a", "b"])
    ['a']
    """
    newest = max((worker["last_seen"] for worker in known.values()), default=0.0)
    return [it for it in addresses if newest - known[it]["last_seen"] < deadlines.SILENT]


def probe() -> dict[str, Any]:
    """What a worker knows about itself: its process id and the GPUs it may see."""
    return {"pid": os.getpid(), "gpus": visible_gpus()}


async def gpu_memory_now() -> tuple[tuple[int, int], ...]:
    """What a worker's GPUs hold, asked in a thread of its own: nvidia-smi may take a second."""
    return await asyncio.to_thread(gpu_memory)


class WorkerPool(Protocol):
    """What maps, launches and sabotage need of the lab whose workers they use; `Lab` is the one that there is."""

    client: Any
    cluster: Any

    @property
    def workers(self) -> Workers:
        """A fresh table of the workers."""

    @property
    def closed(self) -> bool:
        """Whether the workers are out of reach for good."""

    @property
    def settings(self) -> KernelSettings:
        """What the kernel has set that its workers are to heed."""

    @property
    def revives(self) -> int:
        """How many workers nannies of this kernel bring back when they die."""

    def ended_with(self) -> Iterable[str]:
        """The keys of the tasks that were under way in workers as these died, of late; as far as is known."""

    def require_trusted(self) -> None:
        """Raise ConnectError where nothing may be sent that others could read and change."""

    def track(self, work: Handle) -> None:
        """List this work while it is under way, and cancel it when the lab closes."""

    def make_way(self) -> list[str]:
        """Stop what nobody can reach any more; its titles."""


# -- what somebody asks of `connect`


@dataclass(frozen=True)
class WorkerRequest:
    """The arguments of `connect` but its target; None leaves the choice to the kind of cluster."""

    workers: int | None = None
    threads: int | None = None
    memory: int | None = None  # bytes per worker
    security: Security | None = None  # one without encryption where the user wants none
    timeout: float = 10.0  # seconds

    @classmethod
    def of(cls, workers: Any, threads: Any, memory: Any, security: Any, timeout: Any) -> WorkerRequest:
        """A request made of what the user typed; raises SettingError."""
        for name, count in (("workers", workers), ("threads", threads)):
            if count is not None:
                whole(count, name)
        seconds = number(timeout, "timeout", above=True, unit="seconds")
        return cls(workers, threads, _bytes(memory), _secured(security), seconds)


def _bytes(memory: Any) -> int | None:
    if memory is None:
        return None
    try:
        nbytes = int(parse_bytes(memory))
    except (TypeError, ValueError):
        nbytes = 0
    if nbytes <= 0:
        raise SettingError(f'memory={memory!r} is not an amount of memory: give bytes or text such as "2 GiB".')
    return nbytes


def _secured(security: Any) -> Security | None:
    if security is None or isinstance(security, Security):
        return security
    if isinstance(security, str | Path):
        return security_in(security)
    if not isinstance(security, bool):
        raise SettingError(
            f"security={security!r} is neither a folder of certificates, True, False nor a distributed.Security: give "
            "one of them."
        )
    return temporary_security() if security else Security(require_encryption=False)
