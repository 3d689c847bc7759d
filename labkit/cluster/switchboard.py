"""One per client: what all its gangs share, above all the one Dask topic on which their ranks are heard."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from labkit.cluster.turnstile import Turnstile
from labkit.errors import GangError

if TYPE_CHECKING:
    from distributed import Client

COMEBACK = 15.0  # seconds in which a nanny has its worker back, even on a busy machine


class Switchboard:
    """Brings messages of ranks and scheduler to their gangs.

    One topic per client and not one per gang, because a scheduler keeps every topic it ever heard of.
    """

    _known: ClassVar[weakref.WeakKeyDictionary[Client, Switchboard]] = weakref.WeakKeyDictionary()

    def __init__(self, client: Any) -> None:
        self.topic = f"labkit-gang-{client.id}"
        self._receivers: dict[str, Callable[[dict[str, Any]], None]] = {}
        self._registered: asyncio.Future[None] | None = None
        self._expected, self._until = 0, 0.0
        client.subscribe_topic(self.topic, self._receive)

    @classmethod
    def of(cls, client: Client) -> Switchboard:
        """The switchboard of this client."""
        if client not in cls._known:
            cls._known[client] = cls(client)
        return cls._known[client]

    async def ready(self, client: Client) -> None:
        """Have the turnstile on the scheduler; the first launch of a client pays for it."""
        if self._registered is None:
            self._registered = asyncio.ensure_future(client.register_plugin(Turnstile()))
        try:
            await asyncio.shield(self._registered)
        except ImportError as error:
            self._registered = None
            raise GangError(f"the scheduler cannot import labkit ({error}): install the same version there.") from error

    def connect(self, gang: str, receive: Callable[[dict[str, Any]], None]) -> None:
        """Hand every message for `gang` to `receive`, on the event loop."""
        self._receivers[gang] = receive

    def disconnect(self, gang: str) -> None:
        """Drop what still comes for `gang`."""
        self._receivers.pop(gang, None)

    def expect(self, workers: int) -> None:
        """A worker has gone that its nanny starts again: until then the lab has fewer than its `workers`."""
        self._expected, self._until = workers, time.monotonic() + COMEBACK

    def expected(self) -> int:
        """How many workers the lab is about to have again; 0 where none is missing."""
        return self._expected if time.monotonic() < self._until else 0

    def _receive(self, event: tuple[float, Any]) -> None:
        _, note = event
        if note["gang"] in self._receivers:
            self._receivers[note["gang"]](note)
