"""What a worker prints reaches the notebook: complete lines travel as Dask events, from the printing task only.

Only the thread (or coroutine) inside `echo` is captured; everything else that the worker process writes goes where
it always went. Lines keep the order in which their task printed them.
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
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from distributed import Client

# A loop that prints without end must flood neither the scheduler nor the notebook.
MAX_LINES = 1000

_printer: ContextVar[_Printer | None] = ContextVar("labkit_printer", default=None)
_install_lock = threading.Lock()


class _Printer:
    """Collects what one task prints and sends it line by line."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self.send = send
        self.partial = ""
        self.sent = 0

    def write(self, text: str) -> None:
        *lines, self.partial = (self.partial + text).split("\n")
        for line in lines:
            self.line(line)

    def line(self, line: str) -> None:
        self.sent += 1
        if self.sent <= MAX_LINES:
            self.send(line)
        elif self.sent == MAX_LINES + 1:
            self.send(f"… more than {MAX_LINES} lines printed, the rest is not shown")

    def finish(self) -> None:
        if self.partial:
            self.line(self.partial)
            self.partial = ""


class _Router(io.TextIOBase):
    """Stands in for `sys.stdout` of a worker: tasks inside `echo` write to their printer, the rest to `inner`."""

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner

    def write(self, text: str, /) -> int:
        printer = _printer.get()
        if printer is None:
            return self.inner.write(text)
        printer.write(text)
        return len(text)

    def flush(self) -> None:
        if _printer.get() is None:
            self.inner.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self.inner.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.inner.encoding


@contextmanager
def echo(topic: str, prefix: str) -> Iterator[None]:
    """Send every line printed inside the block to the `Echo` that listens to `topic`, led by `prefix`.

    To be used on a Dask worker, inside a task.
    """
    from distributed import get_worker

    worker = get_worker()
    channel = topic.rpartition("/")[0]

    def send(line: str) -> None:
        worker.log_event(channel, {"topic": topic, "line": f"{prefix} {line}"})

    with _install_lock:
        if not isinstance(sys.stdout, _Router):
            sys.stdout = _Router(sys.stdout)
    printer = _Printer(send)
    token = _printer.set(printer)
    try:
        yield
    finally:
        _printer.reset(token)
        printer.finish()


class _Channel:
    """The one Dask topic a client listens to; it hands each line to the `Echo` it belongs to.

    One topic per client and not one per job, because a scheduler keeps every topic it ever heard of.
    """

    def __init__(self, client: Client) -> None:
        self.name = f"labkit-echo-{client.id}"
        self.lines: dict[str, deque[str]] = {}
        self.count = 0
        client.subscribe_topic(self.name, self.receive)

    def receive(self, event: tuple[float, Any]) -> None:
        _, message = event
        if message["topic"] in self.lines:  # a job that nobody listens to any more prints to nobody
            self.lines[message["topic"]].append(message["line"])


_channels: weakref.WeakKeyDictionary[Client, _Channel] = weakref.WeakKeyDictionary()


class Echo:
    """The kernel's ear for one job: hand `.topic` to the workers, `.drain()` what they printed, `.close()` it.

    An ear that is forgotten closes itself; lines that arrive later are dropped.

    >>> from labkit.cluster.echo import Echo                        # doctest: +SKIP
    >>> ear = Echo(lab.client)                                      # doctest: +SKIP
    >>> lab.client.submit(task_using_echo, ear.topic).result()      # doctest: +SKIP
    >>> ear.drain()                                                 # doctest: +SKIP
    ['[worker 0] hello']
    """

    def __init__(self, client: Client) -> None:
        if client not in _channels:
            _channels[client] = _Channel(client)
        self._channel = _channels[client]
        self._channel.count += 1
        self.topic = f"{self._channel.name}/{self._channel.count}"
        self._lines = self._channel.lines[self.topic] = deque()
        self.close = weakref.finalize(self, self._channel.lines.pop, self.topic, None)

    def drain(self) -> list[str]:
        """The lines that arrived since the last call, in order of arrival; safe from any thread."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines
