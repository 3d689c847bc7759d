"""Connections: a rank answers others' requests by a thread for each of them, over connections of their own.

Gloo's point-to-point calls would do for the tensors, but there a wait for anybody ends with the group's time limit,
which then breaks the whole group: a run that was paused for longer would be lost. These connections wait as long as
they have to, and end at once when the other side is gone. As the ranks' other traffic they are not encrypted; they lead
to the worker's own address only, and begin with a proof that both sides know a key, which the ranks tell each other.

`multiprocessing.connection` has the messages and the proof. Its Listener is not used: that waits for a stranger's proof
without a limit, and lets in nobody meanwhile.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from time import monotonic
from typing import NamedTuple

from labkit.cluster import deadlines
from labkit.cluster.gang.diagnosis import RankGone
from labkit.cluster.gang.group import listen
from labkit.errors import ExchangeError

_ASK, _LEAVE = range(2)
_HEAD = struct.Struct("<Bq")  # what this is, and a number; the body follows


class Address(NamedTuple):
    """Where a service is, and what opens it."""

    host: str
    port: int
    key: bytes


class Service(ABC):
    """Answers the ranks `callers` until all of them have left, or one is gone without that; `close` ends it at once.

    Each has a thread that calls `answer`, which may wait there with `until` for what others do. `changed` is the lock
    of what they share, and is notified when the service ends. A send waits for `patience` seconds at most.
    `sent` counts the bytes of the answers to each rank, `heard` is when somebody last asked, by `time.monotonic`.
    """

    def __init__(self, host: str, callers: Iterable[int], patience: float) -> None:
        self.failure: BaseException | None = None
        self.sent: Counter[int] = Counter()
        self.heard = monotonic()
        self.changed = threading.Condition()
        self._over = False
        self._missing, self._there = set(callers), set(callers)  # who has not come yet, and who has not left
        self._patience = patience
        self._door = listen(host)
        self._door.settimeout(deadlines.CONNECTION_POLL)
        self.address = Address(host, self._door.getsockname()[1], secrets.token_bytes(32))
        self._ends: list[socket.socket] = []
        self._threads = [self._started(self._welcome)]

    @abstractmethod
    def answer(self, rank: int, head: int, body: bytes) -> tuple[int, bytes] | None:
        """What a rank gets that sends a number and a body, if it is to get anything; called in its own thread."""

    @abstractmethod
    def left(self, rank: int) -> None:
        """A rank asks nothing more; called with the lock held."""

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait, with the lock held, until the condition holds; ConnectionError when the service ends before."""
        self.changed.wait_for(lambda: self._over or condition())
        if self._over:
            raise _gone()

    def wait(self, timeout: float) -> bool:
        """True once it has ended; raises what it failed with."""
        with self.changed:
            ended = self.changed.wait_for(lambda: self._over or not self._there, timeout)
        if self.failure is not None:
            raise self.failure
        return ended

    def close(self) -> None:
        """End it, whoever is still there."""
        self._end()
        while self._threads:  # the first may still start others
            self._threads.pop(0).join()

    # -- threads

    def _started(self, function: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=function, args=args, name="labkit-service")
        thread.start()
        return thread

    def _end(self, failure: BaseException | None = None) -> None:
        """Whoever reads or waits in a thread finds that it is over; others hang up on each other because of it."""
        with self.changed:
            self.failure = self.failure if self._over else failure
            self._over = True
            self.changed.notify_all()
            for end in self._ends:
                with suppress(OSError):  # it is closed
                    end.shutdown(socket.SHUT_RDWR)

    def _welcome(self) -> None:
        """Give whoever comes a thread, until all ranks are there: no stranger can hold up another one."""
        with self._door:
            while self._missing and not self._over:
                try:
                    end = self._door.accept()[0]
                except TimeoutError:
                    continue
                except OSError as error:
                    self._end(error)
                    return
                with self.changed:
                    self._ends.append(end)
                self._threads.append(self._started(self._attend, end))

    def _attend(self, end: socket.socket) -> None:
        with end:
            try:
                with _connection(end, receive=deadlines.HANDSHAKE, send=self._patience) as line:
                    rank = self._admitted(line)
                    if rank is not None:
                        _limit(end, receive=0, send=self._patience)  # a round takes as long as it takes
                        self._serve(rank, line)
            except BaseException as error:  # noqa: BLE001  the rank itself raises it
                self._end(error)

    def _admitted(self, line: Connection) -> int | None:
        """The rank at the other end, which proves that it knows the key; None for a stranger."""
        with suppress(OSError, EOFError, AuthenticationError, AssertionError, struct.error):
            deliver_challenge(line, self.address.key)
            answer_challenge(line, self.address.key)
            rank: int = _HEAD.unpack(line.recv_bytes(_HEAD.size))[1]
            with self.changed:
                if rank in self._missing and not self._over:
                    self._missing.discard(rank)
                    return rank
        return None

    def _serve(self, rank: int, line: Connection) -> None:
        while True:
            try:
                message = line.recv_bytes()
            except (EOFError, OSError):
                raise _gone() from None
            self.heard = monotonic()
            kind, head = _HEAD.unpack_from(message)
            if kind == _LEAVE:
                break
            answer = self.answer(rank, head, message[_HEAD.size :])
            if answer is not None:
                self.sent[rank] += len(answer[1])
                _send(line, _ASK, *answer)
        with self.changed:
            self._there.discard(rank)
            self.left(rank)
            self.changed.notify_all()


class RankConnection:
    """One rank's connection to a service; `sent` counts the bytes of what it asked and told.

    An answer is waited for `patience` seconds, not counting those in which `excused`.
    """

    def __init__(self, address: Address, rank: int, patience: float, excused: Callable[[], bool]) -> None:
        self.sent = 0
        self._patience, self._excused = patience, excused
        try:
            with socket.create_connection(address[:2], timeout=patience) as end:
                self._line = _connection(end, receive=patience, send=patience)
            answer_challenge(self._line, address.key)
            deliver_challenge(self._line, address.key)
        except (OSError, EOFError, AuthenticationError):
            raise _gone() from None
        _send(self._line, _ASK, rank)

    def ask(self, head: int, body: bytes = b"") -> tuple[int, bytes]:
        """Send a number and a body, and wait for the answer's.

        Raises ConnectionError where the other side is gone, ExchangeError where it takes too long.
        """
        self.tell(head, body)
        since = monotonic()
        try:
            while not self._line.poll(deadlines.CONNECTION_POLL):
                if self._excused():
                    since = monotonic()
                require_patience(monotonic() - since, self._patience)
            message = self._line.recv_bytes()
        except (EOFError, OSError):
            raise _gone() from None
        return _HEAD.unpack_from(message)[1], message[_HEAD.size :]

    def tell(self, head: int, body: bytes) -> None:
        """Send a number and a body, without waiting; ConnectionError where the other side is gone."""
        _send(self._line, _ASK, head, body)
        self.sent += len(body)

    def leave(self) -> None:
        """Ask nothing more."""
        with suppress(OSError):  # whoever is gone need not know
            _send(self._line, _LEAVE)
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


def _connection(end: socket.socket, receive: float, send: float) -> Connection:
    """Messages over a duplicate of the socket, each of whose reads and writes waits for so many seconds at most."""
    end.settimeout(None)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # short messages would wait for an acknowledgement
    _limit(end, receive, send)
    return Connection(os.dup(end.fileno()))


def _limit(end: socket.socket, receive: float, send: float) -> None:
    """Limit what the system waits for, 0: without a limit; Python's own limit would not hold for a duplicate."""
    for option, seconds in ((socket.SO_RCVTIMEO, receive), (socket.SO_SNDTIMEO, send)):
        end.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))


def _send(line: Connection, kind: int, number: int = 0, body: bytes = b"") -> None:
    try:
        line.send_bytes(_HEAD.pack(kind, number) + body)
    except OSError:
        raise _gone() from None


def _gone() -> RankGone:
    return RankGone("Connection closed by peer: a rank that was to answer, or to ask, is gone.")
