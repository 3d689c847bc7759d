"""What somebody asks of `connect`, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from dask.utils import parse_bytes
from distributed import Security

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
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise SettingError(f"{name}={count!r} is not a number of {name}: give a whole number from 1 up.")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise SettingError(f"timeout={timeout!r} is not a time to wait: give seconds above zero.")
        return cls(workers, threads, _bytes(memory), _secured(security), float(timeout))


def _bytes(memory: Any) -> int | None:
    if memory is None:
        return None
    try:
        number = int(parse_bytes(memory))
    except (TypeError, ValueError):
        number = 0
    if number <= 0:
        raise SettingError(f'memory={memory!r} is not an amount of memory: give bytes or text such as "2 GiB".')
    return number


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
