"""Channels: what workers post to the kernel whose work they do, be it a message of a rank or a line that was printed.

Such a note is a Dask event. It costs the worker microseconds, and what one worker posts arrives in that order.
"""

from __future__ import annotations

import io
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

if TYPE_CHECKING:
    from distributed import Client, Scheduler, Worker

Note = dict[str, Any]

MAX_LINES = 1000  # of one task: a loop that prints without end must flood neither the scheduler nor the notebook


class Inbox:
    """Receives in the kernel what is posted to its `address`, until it is closed or forgotten.

    Printed lines wait for `printed`; everything else goes to `receive` at once, on the client's event loop.

    >>> inbox = Inbox(lab.client)                                            # doctest: +SKIP
    >>> lab.client.submit(task_that_captures_prints, inbox.address).result() # doctest: +SKIP
    >>> inbox.printed()                                                      # doctest: +SKIP
    ['[worker 0] hello']
    """

    def __init__(self, client: Client, receive: Callable[[Note], None] | None = None) -> None:
        self._channel = Channel.of(client)
        self._receive = receive
        self._lines: deque[str] = deque()
        self.address = self._channel.admit(self)

    def take(self, note: Note) -> None:
        """Called by the channel."""
        if "line" in note:
            self._lines.append(note["line"])
        elif self._receive is not None:
            self._receive(note)

    def printed(self) -> list[str]:
        """The lines that arrived since the last call, in order of arrival; safe from any thread."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines

    def close(self) -> None:
        """Drop what still comes."""
        self._channel.inboxes.pop(self.address, None)


class Channel:
    """The one Dask topic that a client listens to; it hands each note to the inbox that it is addressed to.

    One topic per client and not one per job or gang, because a scheduler keeps every topic it ever heard of.
    """

    _known: ClassVar[weakref.WeakKeyDictionary[Client, Channel]] = weakref.WeakKeyDictionary()

    def __init__(self, client: Client) -> None:
        self.inboxes: weakref.WeakValueDictionary[str, Inbox] = weakref.WeakValueDictionary()
        self._topic = f"labkit-{client.id}"
        self._numbers = count(1)
        client.subscribe_topic(self._topic, self._deliver)

    @classmethod
    def of(cls, client: Client) -> Channel:
        """The channel of this client."""
        if client not in cls._known:
            cls._known[client] = cls(client)
        return cls._known[client]

    def admit(self, inbox: Inbox) -> str:
        """Deliver to this inbox, too; returns its address."""
        address = f"{self._topic}/{next(self._numbers)}"
        self.inboxes[address] = inbox
        return address

    def _deliver(self, event: tuple[float, Note]) -> None:
        _, note = event
        inbox = self.inboxes.get(note["to"])
        if inbox is not None:  # else nobody wants to hear of it any more
            inbox.take(note)


def listens(scheduler: Scheduler, client: str, address: str) -> None:
    """Let this client hear from now on what is posted to its inbox: its own word that it listens may come later."""
    scheduler.subscribe_topic(address.rpartition("/")[0], client)


def post(sender: Worker | Scheduler, address: str, **content: Any) -> None:
    """Send plain data to an inbox, from any thread of the sender; never waits."""
    sender.log_event(address.rpartition("/")[0], {"to": address, **content})


# -- printed lines


@contextmanager
def capture_prints(address: str, prefix: str) -> Iterator[None]:
    """Post every line that is printed inside the block, led by `prefix`; to be used in a task on a Dask worker.

    Only the thread (or coroutine) inside the block is captured; what else the worker prints goes where it always went.
    """
    from distributed import get_worker

    worker = get_worker()
    with _install_lock:
        if not isinstance(sys.stdout, _Router):
            sys.stdout = _Router(sys.stdout)
    lines = _Lines(lambda line: post(worker, address, line=f"{prefix} {line}"))
    token = _captured.set(lines)
    try:
        yield
    finally:
        _captured.reset(token)
        lines.finish()


class _Lines:
    """Collects what one task prints and sends it line by line."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send
        self._partial = ""
        self._sent = 0

    def write(self, text: str) -> None:
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._line(line)

    def finish(self) -> None:
        if self._partial:
            self._line(self._partial)

    def _line(self, line: str) -> None:
        self._sent += 1
        if self._sent <= MAX_LINES:
            self._send(line)
        elif self._sent == MAX_LINES + 1:
            self._send(f"… more than {MAX_LINES} lines printed, the rest is not shown")


_captured: ContextVar[_Lines | None] = ContextVar("labkit_captured", default=None)
_install_lock = threading.Lock()


class _Router(io.TextIOBase):
    """Stands in for `sys.stdout` of a worker: captured tasks write to their lines, everything else to `inner`."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def write(self, text: str, /) -> int:
        lines = _captured.get()
        if lines is None:
            return self._inner.write(text)
        lines.write(text)
        return len(text)

    def flush(self) -> None:
        self._inner.flush()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._inner.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._inner.encoding
