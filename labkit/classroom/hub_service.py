"""A hub's service ends with the hub, so that the one that the next hub starts finds the port free."""

from __future__ import annotations

import asyncio
import os

from labkit.cluster import deadlines


async def until_the_hub_has_gone() -> None:
    """Return when the hub that has started this process has ended, however; never where no hub has."""
    hub = os.getppid()
    while not os.environ.get("JUPYTERHUB_SERVICE_NAME") or os.getppid() == hub:
        await asyncio.sleep(deadlines.PARENT_POLL)
