"""Service: a thread that answers requests over connections of their own, whoever comes first.

Gloo's point-to-point calls would do for the tensors, but there a wait for anybody ends with the group's time limit,
which then breaks the whole group: a run that was paused for longer would be lost. These connections wait as long as
they have to, and end at once when the other side is gone. As the ranks' other traffic they are not encrypted; they lead
to the worker's own address only, and begin with a secret that the ranks tell each other.
"""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hmac import compare_digest
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from time import monotonic, perf_counter
from typing import NamedTuple, Protocol

import torch

from labkit.cluster.gang.diagnosis import RankGone
from labkit.cluster.gang.group import listen
from labkit.cluster.gang.rank import own_host
from labkit.engines.asynchronous.request_handlers import Params, loaded
from labkit.engines.control import Wish
from labkit.engines.distributed.reporting import common_moment, wish
from labkit.engines.evaluation import accuracies, classes
from labkit.engines.experiment import Experiment
from labkit.errors import ExchangeError

_HELLO, _SAY, _GOODBYE = range(3)
_HEAD = struct.Struct("<Bq")  # what this is, and a number; the body follows
_LOOK = 0.05  # seconds between two looks at whether an answer may be waited for any longer
_HANDSHAKE = 5.0  # seconds in which a new connection says who it is


class Address(NamedTuple):
    """Where a service is, and what opens it."""

    host: str
    port: int
    secret: bytes


Answers = Iterable[tuple[int, int, bytes]]  # to which rank, a number, and a body


class Clerk(Protocol):
    """Who decides the answers: those that may go out now, be it to this rank or to others that have asked before."""

    def heard(self, rank: int, head: int, body: bytes) -> Answers:
        """A rank has said something, and may wait for an answer."""

    def left(self, rank: int) -> Answers:
        """A rank has said goodbye."""


class Service:
    """Answers the ranks `callers` until all of them have said goodbye, or one is gone without; `close` ends it at once.

    `sent` counts the bytes of the answers to each rank, `heard` is when somebody last asked, by `time.monotonic`.
    """

    def __init__(self, host: str, callers: Iterable[int], clerk: Clerk) -> None:
        self._door = listen(host)
        self.address = Address(host, self._door.getsockname()[1], secrets.token_bytes(16))
        self.failure: BaseException | None = None
        self.sent: Counter[int] = Counter()
        self._clerk, self._callers = clerk, set(callers)
        self._lines: dict[int, Connection] = {}
        self._asleep, self._bell = Pipe(duplex=False)
        self.heard = monotonic()
        self._thread = threading.Thread(target=self._run, name="labkit-service")
        self._thread.start()

    def wait(self, timeout: float) -> bool:
        """True once it has ended; raises what it failed with."""
        self._thread.join(timeout)
        if self.failure is not None:
            raise self.failure
        return not self._thread.is_alive()

    def close(self) -> None:
        """End it, whoever is still there."""
        with suppress(OSError):  # it has ended
            self._bell.send_bytes(b"!")
        self._thread.join()
        self._bell.close()

    # -- the thread

    def _run(self) -> None:
        try:
            while self._callers:
                ready = wait([self._asleep, self._door, *self._lines.values()])
                if self._asleep in ready:
                    return
                if self._door in ready:
                    self._welcome()
                for rank in [rank for rank, line in self._lines.items() if line in ready]:
                    self._serve(rank)
        except BaseException as error:  # noqa: BLE001  the rank itself raises it
            self.failure = error
        finally:
            for line in (*self._lines.values(), self._asleep):
                line.close()
            self._door.close()

    def _welcome(self) -> None:
        """Let a rank in that knows the secret."""
        line = _connection(self._door.accept()[0])
        with suppress(OSError, EOFError, struct.error):  # a stranger's
            if line.poll(_HANDSHAKE):
                kind, rank, secret = _read(line, most=_HEAD.size + len(self.address.secret))
                if kind == _HELLO and rank in self._callers and compare_digest(secret, self.address.secret):
                    self._lines[rank] = line
                    return
        line.close()

    def _serve(self, rank: int) -> None:
        try:
            kind, head, body = _read(self._lines[rank])
        except (EOFError, OSError):
            raise _gone() from None
        self.heard = monotonic()
        if kind == _GOODBYE:
            self._lines.pop(rank).close()
            self._callers.remove(rank)
            answers = self._clerk.left(rank)
        else:
            answers = self._clerk.heard(rank, head, body)
        for other, number, answer in answers:
            self.sent[other] += len(answer)
            try:
                _write(self._lines[other], _SAY, number, answer)
            except OSError:
                raise _gone() from None


class Line:
    """One rank's connection to a service; `sent` counts the bytes of what it asked and told.

    An answer is waited for `patience` seconds, not counting those in which `excused`.
    """

    def __init__(self, address: Address, rank: int, patience: float, excused: Callable[[], bool]) -> None:
        self.sent = 0
        self._patience, self._excused = patience, excused
        try:
            self._line = _connection(socket.create_connection(address[:2], timeout=patience))
            _write(self._line, _HELLO, rank, address.secret)
        except OSError:
            raise _gone() from None

    def ask(self, head: int, body: bytes = b"") -> tuple[int, bytes]:
        """Send a number and a body, and wait for the answer's.

        Raises ConnectionError where the other side is gone, ExchangeError where it takes too long.
        """
        self.tell(head, body)
        since = monotonic()
        try:
            while not self._line.poll(_LOOK):
                if self._excused():
                    since = monotonic()
                require_patience(monotonic() - since, self._patience)
            return _read(self._line)[1:]
        except (EOFError, OSError):
            raise _gone() from None

    def tell(self, head: int, body: bytes) -> None:
        """Send a number and a body, without waiting; ConnectionError where the other side is gone."""
        try:
            _write(self._line, _SAY, head, body)
        except OSError:
            raise _gone() from None
        self.sent += len(body)

    def goodbye(self) -> None:
        """Ask nothing more."""
        with suppress(OSError):  # whoever is gone needs no goodbye
            _write(self._line, _GOODBYE, 0, b"")
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._line.close()


def require_patience(waited: float, patience: float) -> None:
    """Raise ExchangeError after more than `patience` seconds without a word."""
    if waited > patience:
        raise ExchangeError(
            f"A rank heard nothing for {patience:g} s, because another one's round takes longer: let rounds be "
            "shorter, or train on lk.Cluster(lab, timeout=…) with a longer one."
        )


def _connection(end: socket.socket) -> Connection:
    end.settimeout(None)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # short messages would wait for an acknowledgement
    return Connection(end.detach())


def _write(line: Connection, kind: int, head: int, body: bytes) -> None:
    line.send_bytes(_HEAD.pack(kind, head) + body)


def _read(line: Connection, most: int | None = None) -> tuple[int, int, bytes]:
    message = line.recv_bytes(most)
    kind, head = _HEAD.unpack_from(message)
    return kind, head, message[_HEAD.size :]


def _gone() -> RankGone:
    return RankGone("Connection closed by peer: a rank that was to answer, or to ask, is gone.")


# -- Seat: one rank of an asynchronous run, which peers it has, and how long it waits for others.


@dataclass
class Seat:
    """`blocks[r]` are the peers of rank r, and this rank's compute on `device`.

    `patience` limits in seconds how long it waits for a word of the others; a pause does not count.
    """

    experiment: Experiment
    blocks: Sequence[range]
    rank: int
    device: torch.device
    patience: float
    began: float = 0.0
    service: Service | None = None  # this rank's own, if it has one

    @property
    def members(self) -> range:
        return self.blocks[self.rank]

    @property
    def host(self) -> str:
        """The address of this rank's worker."""
        return own_host()

    @property
    def seconds(self) -> float:
        """Since the ranks began."""
        return perf_counter() - self.began

    def start(self) -> None:
        """The ranks begin, and count their seconds from one moment."""
        self.began = common_moment()

    def explain(self) -> None:
        """Raise what this rank's own service failed with, if it did: others hang up on each other because of it."""
        if self.service is not None and self.service.failure is not None:
            raise self.service.failure from None  # else another rank would be looked for that is to blame

    def line(self, address: Address) -> Line:
        """A connection to the service of a rank."""
        return Line(address, self.rank, self.patience, lambda: wish() is Wish.PAUSE)

    def ended(self, service: Service, timeout: float) -> bool:
        """Wait so long for the service to end; True when it has.

        Raises what it failed with, and ExchangeError when nobody has asked for too long.
        """
        if wish() is Wish.PAUSE:
            service.heard = monotonic()
        over = service.wait(timeout)
        require_patience(monotonic() - service.heard, self.patience)
        return over

    def accuracy(self, peer: int, params: Params) -> float:
        """The share of the test set that the peer's model gets right with these parameters."""
        model = loaded(self.experiment.fresh_model(peer), params).to(self.device).eval()
        data = self.experiment.dataset
        predicted = classes(model, data.test_x.to(self.device)).unsqueeze(0)
        return accuracies(predicted, data.test_y.to(self.device))[0]
