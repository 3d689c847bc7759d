"""What somebody asks of `connect`, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from dask.utils import parse_bytes
from distributed import Security

from labkit.checks import number, whole
from labkit.errors import MissingPackage, SettingError


@dataclass(frozen=True)
class Request:
    """The arguments of `connect` but its target; None leaves the choice to the kind of cluster."""

    workers: int | None = None
    threads: int | None = None
    memory: int | None = None  # bytes per worker
    security: Security | None = None
    timeout: float = 10.0  # seconds

    @classmethod
    def of(cls, workers: Any, threads: Any, memory: Any, security: Any, timeout: Any) -> Request:
        """A request made of what the user typed; raises SettingError, or MissingPackage for certificates."""
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
    if security is None or security is False:
        return None
    if isinstance(security, Security):
        return security
    if security is not True:
        raise SettingError(f"security={security!r} is neither True nor a distributed.Security: give one of them.")
    try:
        return cast(Security, Security.temporary())
    except ImportError as error:
        raise MissingPackage(
            "security=True makes certificates with a package that is not installed: pip install cryptography."
        ) from error
