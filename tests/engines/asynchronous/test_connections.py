"""The service: it answers whoever comes first, lets no stranger in, and ends when it should."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import psutil
import pytest

from labkit.engines.asynchronous.connections import Address, RankConnection, Service
from labkit.errors import ExchangeError

HOST = "127.0.0.1"


class Rendezvous(Service):
    """Answers nobody before `together` ranks have asked, and says who asked first."""

    def __init__(self, together, callers):
        self.together, self.waiting, self.met = together, [], []
        super().__init__(HOST, callers, patience=5.0)

    def answer(self, rank, head, body):
        with self.changed:
            self.waiting.append(rank)
            self._meet()
            self.until(lambda: rank in self.met)
            return self.met.index(rank), b"%d" % self.met[0]

    def left(self, rank):
        self.together -= 1
        self._meet()

    def _meet(self):
        if len(self.waiting) >= self.together:
            self.met, self.waiting = self.waiting, []
            self.changed.notify_all()


@pytest.fixture
def hosted():
    """Makes services that end with the test."""
    made = []

    def host(together=1, callers=(0,), kind=Rendezvous):
        made.append(kind(together, callers))
        return made[-1]

    yield host
    for service in made:
        service.close()
    assert [it for it in threading.enumerate() if it.name == "labkit-service"] == []


def connected(service, rank=0, patience=5.0, excused=lambda: False):
    return RankConnection(service.address, rank, patience, excused)


def test_an_answer_comes_back_with_its_number_and_bytes_are_counted(hosted):
    service = hosted()
    own = connected(service)
    assert own.ask(7, b"x" * 100_000) == (0, b"0")
    assert own.sent == 100_000 and service.sent == {0: 1}
    own.leave()
    assert service.wait(5.0)


def test_an_answer_may_wait_for_another_rank(hosted):
    service = hosted(2, (0, 1))
    ranks, answers = [connected(service, rank) for rank in (0, 1)], {}
    asking = threading.Thread(target=lambda: answers.update(first=ranks[1].ask(0)))
    asking.start()
    while not service.waiting:
        time.sleep(0.001)
    assert ranks[0].ask(0) == (1, b"1")
    asking.join()
    assert answers == {"first": (0, b"1")}
    for it in ranks:
        it.close()


def test_who_waits_goes_on_when_the_one_waited_for_leaves(hosted):
    service = hosted(2, (0, 1))
    waiting, leaving = connected(service, 0), connected(service, 1)
    threading.Timer(0.05, leaving.leave).start()
    assert waiting.ask(0) == (0, b"0")
    waiting.close()


@pytest.mark.parametrize(
    "hello",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x10" + bytes(16), b"\x00\x00\x01\x00" + bytes(256), b"\xff" * 8],
    ids=["nothing", "another protocol", "a wrong proof", "a long one", "a length without end"],
)
def test_a_stranger_is_not_let_in_and_does_no_harm(hosted, hello):
    service = hosted()
    # To whom the door is shut before all was said finds the line dead, in one of several words.
    with socket.create_connection(service.address[:2]) as stranger, suppress(OSError):
        stranger.sendall(hello)
        stranger.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: stranger.recv(1024), b""))
        assert said[4:].startswith(b"#CHALLENGE#") and b"#WELCOME#" not in said
    own = connected(service)
    assert own.ask(0) == (0, b"0")
    own.leave()
    assert service.wait(5.0)


def test_who_has_another_key_is_not_let_in(hosted):
    service = hosted()
    with pytest.raises(AuthenticationError):
        Client(service.address[:2], authkey=b"guessed")
    with pytest.raises(ConnectionError, match="gone"):
        RankConnection(service.address._replace(key=b"guessed"), 0, 5.0, lambda: False)
    assert connected(service).ask(0) == (0, b"0")


def test_a_rank_that_proves_the_key_and_is_there_already_or_unknown_is_not_let_in_either(hosted):
    service = hosted(1, (0, 1))
    own = connected(service, 0)
    assert own.ask(0) == (0, b"0")
    for rank in (0, 7):
        with pytest.raises(ConnectionError):
            connected(service, rank).ask(0)
    assert connected(service, 1).ask(0) == (0, b"1")


def test_silent_strangers_and_slow_ones_delay_nobody(hosted):
    service = hosted()
    strangers = [socket.create_connection(service.address[:2]) for _ in range(20)]
    for stranger in strangers[:10]:
        stranger.sendall(b"\x00\x00")  # a part of a length
    begun = time.monotonic()
    own = connected(service)
    assert own.ask(0) == (0, b"0") and time.monotonic() - begun < 2
    begun = time.monotonic()
    service.close()
    assert time.monotonic() - begun < 2
    for stranger in strangers:
        stranger.close()


def test_a_service_listens_on_its_own_address_alone_and_until_all_ranks_are_there(hosted):
    service = hosted()
    port = service.address.port
    listening = {it.laddr for it in psutil.Process().net_connections() if it.laddr.port == port and not it.raddr}
    assert listening == {(HOST, port)}
    connected(service).ask(0)
    service._threads[0].join(5.0)  # who lets the ranks in
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(service.address[:2])


def test_a_rank_that_is_gone_without_leaving_ends_the_service_and_who_waits(hosted):
    service = hosted(2, (0, 1))
    waiting, dying = connected(service, 0), connected(service, 1)
    threading.Timer(0.05, dying.close).start()
    with pytest.raises(ConnectionError, match="Connection closed by peer"):
        waiting.ask(0)
    with pytest.raises(ConnectionError, match="Connection closed by peer"):
        service.wait(5.0)


def test_what_an_answer_fails_with_is_what_the_service_failed_with(hosted):
    class Clumsy(Rendezvous):
        def answer(self, rank, head, body):
            raise ZeroDivisionError("my own mistake")

    service = hosted(kind=Clumsy)
    with pytest.raises(ConnectionError):
        connected(service).ask(0)
    with pytest.raises(ZeroDivisionError, match="my own mistake"):
        service.wait(5.0)


def test_patience_ends_in_one_sentence_unless_the_wait_is_excused(hosted):
    service = hosted(2, (0, 1))
    paused = threading.Event()
    paused.set()
    threading.Timer(0.4, paused.clear).start()
    begun = time.monotonic()
    with pytest.raises(ExchangeError, match=r"heard nothing for 0\.1 s, because another one's round takes longer"):
        connected(service, patience=0.1, excused=paused.is_set).ask(0)
    assert 0.4 < time.monotonic() - begun < 3


def test_a_rank_that_stops_in_the_middle_of_a_message_is_waited_for_no_longer_than_patience(hosted):
    with socket.create_server((HOST, 0)) as door:
        address = Address(HOST, door.getsockname()[1], b"key")
        begun = time.monotonic()
        with pytest.raises(ConnectionError, match="gone"):
            RankConnection(address, 0, 0.3, lambda: False)  # nobody answers there
        assert 0.3 <= time.monotonic() - begun < 3


def test_a_service_that_is_closed_ends_at_once_whoever_is_there(hosted):
    service = hosted(2, (0, 1))
    own = connected(service)
    service.close()
    with pytest.raises(ConnectionError):
        own.ask(0)
    with pytest.raises(ConnectionError):
        RankConnection(Address(HOST, service.address.port, b""), 0, 1.0, lambda: False)
