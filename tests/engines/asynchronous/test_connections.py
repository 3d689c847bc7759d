"""The service: it answers whoever comes first, lets no stranger in, and ends when it should."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

import pytest

from labkit.engines.asynchronous.connections import Address, Line, Service
from labkit.errors import ExchangeError

HOST = "127.0.0.1"


class Rendezvous:
    """A clerk that answers nobody before `together` ranks have asked, and says who asked first."""

    def __init__(self, together=1):
        self.together, self.waiting = together, []

    def heard(self, rank, head, body):
        self.waiting.append(rank)
        return self._answers()

    def left(self, rank):
        self.together -= 1
        return self._answers()

    def _answers(self):
        if len(self.waiting) < self.together:
            return []
        answers = [(rank, at, b"%d" % self.waiting[0]) for at, rank in enumerate(self.waiting)]
        self.waiting = []
        return answers


@pytest.fixture
def hosted():
    """Makes services that end with the test."""
    made = []

    def host(clerk, callers=(0,)):
        made.append(Service(HOST, callers, clerk))
        return made[-1]

    yield host
    for service in made:
        service.close()
        assert not service._thread.is_alive()


def line(service, rank=0, patience=5.0, excused=lambda: False):
    return Line(service.address, rank, patience, excused)


def test_an_answer_comes_back_with_its_number_and_bytes_are_counted(hosted):
    service = hosted(Rendezvous())
    own = line(service)
    assert own.ask(7, b"x" * 100_000) == (0, b"0")
    assert own.sent == 100_000 and service.sent == {0: 1}
    own.goodbye()
    assert service.wait(5.0)


def test_an_answer_may_wait_for_another_rank(hosted):
    service = hosted(Rendezvous(2), (0, 1))
    lines, answers = [line(service, rank) for rank in (0, 1)], {}
    asking = threading.Thread(target=lambda: answers.update(first=lines[1].ask(0)))
    asking.start()
    while not service._clerk.waiting:
        time.sleep(0.001)
    assert lines[0].ask(0) == (1, b"1")
    asking.join()
    assert answers == {"first": (0, b"1")}
    for it in lines:
        it.close()


def test_who_waits_goes_on_when_the_one_waited_for_says_goodbye(hosted):
    service = hosted(Rendezvous(2), (0, 1))
    waiting, leaving = line(service, 0), line(service, 1)
    threading.Timer(0.05, leaving.goodbye).start()
    assert waiting.ask(0) == (0, b"0")
    waiting.close()


@pytest.mark.parametrize(
    "hello",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x09" + bytes(9), b"\x00\x00\x00\x19" + bytes(25), b"\xff" * 8],
    ids=["nothing", "another protocol", "no secret", "a wrong secret", "a length without end"],
)
def test_a_stranger_is_not_let_in_and_does_no_harm(hosted, hello):
    service = hosted(Rendezvous())
    # To whom the door is shut before all was said finds the line dead, in one of several words.
    with socket.create_connection(service.address[:2]) as stranger, suppress(OSError):
        stranger.sendall(hello)
        stranger.shutdown(socket.SHUT_WR)
        assert stranger.recv(1) == b""
    own = line(service)
    assert own.ask(0) == (0, b"0")
    own.goodbye()
    assert service.wait(5.0)


def test_a_rank_that_is_gone_without_a_goodbye_ends_the_service_and_who_waits(hosted):
    service = hosted(Rendezvous(2), (0, 1))
    waiting, dying = line(service, 0), line(service, 1)
    threading.Timer(0.05, dying.close).start()
    with pytest.raises(ConnectionError, match="Connection closed by peer"):
        waiting.ask(0)
    with pytest.raises(ConnectionError, match="Connection closed by peer"):
        service.wait(5.0)


def test_what_the_clerk_fails_with_is_what_the_service_failed_with(hosted):
    class Clumsy(Rendezvous):
        def heard(self, rank, head, body):
            raise ZeroDivisionError("my own mistake")

    service = hosted(Clumsy())
    with pytest.raises(ConnectionError):
        line(service).ask(0)
    with pytest.raises(ZeroDivisionError, match="my own mistake"):
        service.wait(5.0)


def test_patience_ends_in_one_sentence_unless_the_wait_is_excused(hosted):
    service = hosted(Rendezvous(2), (0, 1))
    paused = threading.Event()
    paused.set()
    threading.Timer(0.4, paused.clear).start()
    begun = time.monotonic()
    with pytest.raises(ExchangeError, match=r"heard nothing for 0\.1 s, because another one's round takes longer"):
        line(service, patience=0.1, excused=paused.is_set).ask(0)
    assert 0.4 < time.monotonic() - begun < 3


def test_a_service_that_is_closed_ends_at_once_whoever_is_there(hosted):
    service = hosted(Rendezvous(2), (0, 1))
    own = line(service)
    service.close()
    with pytest.raises(ConnectionError):
        own.ask(0)
    with pytest.raises(ConnectionError):
        Line(Address(HOST, service.address.port, b""), 0, 1.0, lambda: False)
