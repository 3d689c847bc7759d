"""The payload of a gang, a function with its arguments: how it comes to the workers of all ranks."""

from __future__ import annotations

import asyncio
from typing import Any

from labkit.errors import GangError
from labkit.text import amount

LARGE = 64 * 1024  # bytes; a larger payload goes to the workers as Dask data, not through the task graph


async def placed(client: Any, payload: bytes, worker: str, limit: float) -> Any:
    """What the tasks of the ranks are given: the payload, or a large one as data of this worker, which others fetch.

    Raises GangError where it has not come there within `limit` seconds. It is not sent to all workers by `broadcast`:
    where one of them dies meanwhile, Dask tries for ever, and lets nobody else send anything.
    """
    if len(payload) <= LARGE:
        return payload
    sending = asyncio.ensure_future(client.scatter(payload, workers=[worker], hash=False))
    try:
        return await asyncio.wait_for(asyncio.shield(sending), limit)  # data of a call that is given up would stay
    except Exception as error:  # whatever Dask says of a worker that is gone
        raise GangError(
            f"the function with its arguments, {amount(len(payload))}, could not be brought to worker {worker} "
            f"({type(error).__name__}: {error}): launch again."
        ) from error
