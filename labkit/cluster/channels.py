"""One per client: what all its gangs share, above all the one Dask topic on which their ranks are heard."""

from __future__ import annotations

import asyncio
import io
import pickle
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

import cloudpickle

from labkit.cluster.gang.gang_queue import Turnstile
from labkit.cluster.sockets import host_of
from labkit.errors import GangError, let_go

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


# -- What a worker prints reaches the notebook: complete lines travel as Dask events, from the printing task only.
#
# Only the thread (or coroutine) inside `echo` is captured; everything else that the worker process writes goes where
# it always went. Lines keep the order in which their task printed them.

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

    >>> from labkit.cluster.channels import Echo                        # doctest: +SKIP
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


# -- What the client tells the ranks of a gang, and what they report: plain data, in a form that always unpickles.


@dataclass(frozen=True)
class Plan:
    """What `launch` was asked for: `payload` is the pickled call, `workers` the size of the lab, `gpus` maps workers
    to what each sees as its first GPU, `timeout` is in seconds.
    """

    name: str
    payload: bytes
    ranks: int
    workers: int
    gpus: Mapping[str, str]
    timeout: float
    echo_topic: str | None

    def order(self, gang: str, topic: str, workers: Sequence[str]) -> Order:
        """The same for the ranks, now that their workers are known.

        NCCL needs a GPU for each rank alone; gloo is there in any case, for tensors on the CPU.
        """
        hosts = [host_of(worker) for worker in workers]
        gpus = {(host, self.gpus[worker]) for host, worker in zip(hosts, workers, strict=True) if worker in self.gpus}
        own = len(gpus) == len(workers)
        # A rank with its own GPU sees it as its first one, whatever its place on the host.
        local_ranks = [0 if own else hosts[:rank].count(host) for rank, host in enumerate(hosts)]
        backend = "cpu:gloo,cuda:nccl" if own else "gloo"
        return Order(gang, topic, self.echo_topic, tuple(workers), tuple(local_ranks), backend, self.timeout)


@dataclass(frozen=True)
class Order:
    """What every rank of one gang needs to know; `workers` and `local_ranks` are by rank, `timeout` in seconds."""

    gang: str
    topic: str
    echo_topic: str | None
    workers: tuple[str, ...]
    local_ranks: tuple[int, ...]
    backend: str
    timeout: float


@dataclass(frozen=True)
class Failure:
    """An exception of one rank: in words, and as itself where it can be pickled."""

    stage: str  # "load", "start", "run" or "return"
    summary: str
    text: str  # with its traceback
    error: bytes | None
    first: bool  # no other rank had failed before
    ended: bool  # it was told to end

    @classmethod
    def of(cls, error: BaseException, stage: str, *, first: bool, ended: bool, hide: str) -> Failure:
        """Take down `error`, less the frames of the file `hide`, and let go of what its frames hold (models, GPUs)."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == hide:
            trace = trace.tb_next
        error.__traceback__ = trace  # a learner's traceback starts at the learner's own function
        text = "".join(traceback.format_exception(error))
        summary, *more = "".join(traceback.format_exception_only(error)).strip().splitlines()
        packed = _pack(error, trace)
        let_go(error)
        return cls(stage, summary + " …" * bool(more), text, packed, first, ended)

    def original(self) -> BaseException:
        """The exception with its own traceback; its words in a RuntimeError where it cannot be unpickled here."""
        try:
            error, trace = pickle.loads(self.error or b"")
            original: BaseException = error.with_traceback(trace)
        except Exception:  # noqa: BLE001  whatever a user's exception does when it is made: its words are here
            return RuntimeError(f"(the exception itself could not be sent)\n{self.text}")
        return original


@dataclass(frozen=True)
class Report:
    """How one rank ended: `value` is its pickled result, `sent` counts its messages."""

    rank: int
    value: bytes | None
    failure: Failure | None
    sent: int


def _pack(error: BaseException, trace: TracebackType | None) -> bytes | None:
    try:
        return bytes(cloudpickle.dumps((error, trace)))  # distributed teaches pickle about tracebacks, by tblib
    except Exception:  # noqa: BLE001  whatever a user's exception does when it is pickled: its words still travel
        return None
