"""Masks of the class's training: the sum is exact, and a board that looks at all it receives finds nothing else."""

from __future__ import annotations

import hmac
import json
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import combinations
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray
from scipy.stats import kstest

import labkit as lk
from labkit.classroom.arrays import unpacked
from labkit.classroom.key_agreement import RoundKey, require_key
from labkit.errors import ExchangeError
from labkit.exchange.randomness import key
from labkit.exchange.secure import masks
from tests.classroom.clients import SIZE, Raw, alone, differ, invited
from tests.classroom.serving import TOKEN, ask, running_board

HIDDEN, NUMBERS = (8,), 64 * 8 + 8 + 8 * 10 + 10 + 1  # of the layer, and of an update, with its weight
Updates = dict[int, dict[int, NDArray[np.int64]]]  # round -> client -> numbers


@pytest.fixture(scope="module")
def board() -> Iterator[str]:
    with running_board() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_BOARD", address)
        patch.setenv("LABKIT_BOARD_TOKEN", TOKEN)
        yield address


class Relay:
    """Stands between clients and the board, and keeps all requests as the board gets them."""

    def __init__(self, board: str) -> None:
        self._to = (urlsplit(board).hostname, urlsplit(board).port)
        self._door = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.address = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self._requests: list[bytearray] = []  # of a connection each, as urllib makes them
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._door.accept()
                far = socket.create_connection(self._to)
                self._requests.append(bytearray())
                for source, target, kept in ((near, far, self._requests[-1]), (far, near, None)):
                    threading.Thread(target=self._pass_on, args=(source, target, kept), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
        with suppress(OSError), source:
            while data := source.recv(1 << 16):
                if kept is not None:
                    kept += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def updates(self) -> list[tuple[int, NDArray[np.int64]]]:
        """Round and numbers of each update that came, taken or not."""
        found = []
        for request in self._requests:
            head, _, body = bytes(request).partition(b"\r\n\r\n")
            if head.startswith(b"POST /federation/update?round="):
                number = int(head.partition(b"round=")[2].split(b"&")[0].split()[0])
                found.append((number, unpacked(body, NUMBERS, np.int64)))
        return found

    def keys(self) -> list[str]:
        """The public keys that came."""
        told = [bytes(it).partition(b"\r\n\r\n") for it in self._requests]
        return [json.loads(body)["key"] for head, _, body in told if head.startswith(b"POST /federation/ready")]


@pytest.fixture
def relay(board: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    with closing(Relay(board)) as relay:
        monkeypatch.setenv("LABKIT_BOARD", relay.address)
        yield relay


@contextmanager
def known_to_clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[Updates]:
    """What each client of this process masks, which it alone knows."""
    secret: Updates = defaultdict(dict)
    masked = RoundKey.masked

    def kept(own: RoundKey, numbers: NDArray[np.int64], keys: dict[int, str]) -> NDArray[np.int64]:
        secret[own.number][own.client] = numbers.copy()
        return masked(own, numbers, keys)

    with monkeypatch.context() as patch:
        patch.setattr(RoundKey, "masked", kept)
        yield secret


def require_hidden(sent: list[NDArray[np.int64]], secret: dict[int, NDArray[np.int64]], seed: int, number: int) -> None:
    """No sum of some, but not all, of what was sent tells what one client or several have, nor does the run's seed."""
    common = key("Secure", seed, number, 0)  # from which `labkit.algorithms.Secure` draws, and which the board knows
    everyone = torch.tensor(sorted(secret))
    drawn = [masks(torch.tensor(k), everyone, common, NUMBERS).numpy() for k in sorted(secret)]
    truths = list(sums_of_some(list(secret.values())))
    for total in sums_of_some(sent):
        assert kstest(total / 2.0**64 + 0.5, "uniform").pvalue > 1e-6
        for tried in (total, *(total - mask for mask in sums_of_some(drawn))):
            assert all(abs(alike(tried, truth)) < 0.3 for truth in truths)


def sums_of_some(vectors: list[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """The sums of one, two and more of them, but not of all."""
    for count in range(1, len(vectors)):
        yield from (sum(some) for some in combinations(vectors, count))


def alike(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    return float(np.corrcoef(one.astype(np.float64), other.astype(np.float64))[0, 1])


def test_masks_cancel_to_the_same_mean_and_the_board_finds_no_update_in_all_that_it_received(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    with known_to_clients(monkeypatch) as secret:
        with invited(4, rounds=3, labels=4, hidden=HIDDEN, masks=True) as invitation:
            joined = [lk.join(name=f"s{k}") for k in range(4)]
            history = invitation.result(30)
            assert differ(history, alone(invitation.assignment)) < 1e-5
            assert [it.result(10).rows[-1].round for it in joined] == [3] * 4
            assert joined[0].history.bytes > 3 * 8 * NUMBERS  # 64-bit numbers
        assert [it["distance"] for it in invitation.clients] == [None] * 4
    assert len(set(relay.keys())) == 4 * 3  # a new one in each round
    for number in (1, 2, 3):
        sent = [numbers for when, numbers in relay.updates() if when == number]
        assert np.array_equal(sum(sent), sum(secret[number].values()))  # to the last bit
        require_hidden(sent, secret[number], invitation.assignment.seed, number)


def test_a_masked_round_that_loses_a_client_is_void_and_tells_nothing_though_its_update_comes_late(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    with known_to_clients(monkeypatch) as secret, invited(4, rounds=2, hidden=HIDDEN, masks=True) as invitation:
        ghost = Raw(relay.address, "ghost")
        ghost.join()
        students = [lk.join(name=f"s{k}") for k in range(3)]
        ghost.order("train")
        own = RoundKey(0, 1)
        assert ghost.ask("ready", {"round": 1, "key": own.public})[0] == 200
        keys = {int(k): it for k, it in ghost.order("mask")["keys"].items()}
        assert set(keys) == {0, 1, 2, 3} and keys[0] == own.public
        late = own.masked(np.arange(NUMBERS) << 16, keys)
        assert ghost.ask("leave", {})[0] == 200
        assert [row.round for row in invitation.result(10).rows] == [2]  # at once, before its limit of 20 s
        assert ghost.send(1, late)[0] == 403
        shown = json.loads(ask(f"{relay.address}/federation/state")[1])["training"]
        assert [it.result(10).rows[-1].round for it in students] == [2] * 3
    assert any("round 1 is void: without the masks of client 0" in it for it in shown["events"])
    first, second = ([numbers for when, numbers in relay.updates() if when == n] for n in (1, 2))
    assert np.array_equal(first[-1], late) and len(first) == 4
    assert np.array_equal(sum(second), sum(secret[2].values())) and len(second) == 3
    require_hidden(first, secret[1], 0, 1)
    require_hidden(second, secret[2], 0, 2)
    assert len(set(relay.keys())) == 4 + 3


def test_nobody_is_asked_for_a_masked_update_among_fewer_than_three(relay: Relay) -> None:
    """Alone a mask is zero, and with two each learns the other's update from the sum."""
    with invited(3, rounds=2, hidden=HIDDEN, masks=True, wait=0.5) as invitation:
        absent = Raw(relay.address, "absent")
        absent.join()
        for k in range(2):
            lk.join(name=f"s{k}")
        assert invitation.result(20).rows == []
        shown = json.loads(ask(f"{relay.address}/federation/state")[1])["training"]
    assert relay.updates() == [] and all(it["up"] == 0 for it in shown["clients"])
    assert "round 2 is void: masks hide nobody among fewer than 3" in shown["events"]


def test_the_board_takes_no_key_with_which_there_are_no_secrets(board: str) -> None:
    with invited(3, rounds=1, masks=True):
        ada = Raw(board, "ada")
        ada.join()
        for k in range(2):
            lk.join(name=f"s{k}")
        ada.order("train")
        for no_key in (None, 7, "", "g" * 64, "00" * 32, "01" + "00" * 31, RoundKey(0, 1).public[2:]):
            status, answer = ada.ask("ready", {"round": 1, "key": no_key})
            assert status == 400 and "X25519" in answer["error"]
        assert ada.ask("update?round=1", b"x" * SIZE)[0] == 409  # it is not among those who mask


def pair(round_: int = 1, clients: int = 4) -> tuple[list[RoundKey], dict[int, str]]:
    each = [RoundKey(k, round_) for k in range(clients)]
    return each, {it.client: it.public for it in each}


@pytest.mark.parametrize("clients", [3, 7])
def test_masks_by_key_agreement_cancel_and_each_is_uniform(clients: int) -> None:
    each, keys = pair(clients=clients)
    numbers = np.full(20_000, 3 << 24)
    sent = [it.masked(numbers, keys) for it in each]
    assert np.array_equal(sum(sent), clients * numbers)
    for it in sent:
        assert kstest(it / 2.0**64 + 0.5, "uniform").pvalue > 1e-4
        assert kstest((it & 0xFFFF) / 2.0**16, "uniform").pvalue > 1e-4


def test_the_seed_of_a_pair_is_hkdf_s_of_their_secret_for_this_round() -> None:
    """RFC 5869 and RFC 8439, computed here from the standard library and the two ends."""
    mine, theirs = X25519PrivateKey.generate(), RoundKey(2, 5)
    own = RoundKey(0, 5)
    own._private, own.public = mine, mine.public_key().public_bytes_raw().hex()
    secret = theirs._private.exchange(mine.public_key())
    info = f"labkit masks, round 5, {[(0, own.public), (2, theirs.public)]}".encode()
    extracted = hmac.digest(bytes(32), secret, "sha256")
    seed = hmac.digest(extracted, info + b"\1", "sha256")
    assert np.array_equal(own._stream(2, theirs.public, 40), chacha20(seed, 40))
    assert np.array_equal(theirs._stream(0, own.public, 40), chacha20(seed, 40))
    own.number = 6
    assert not (own._stream(2, theirs.public, 40) == chacha20(seed, 40)).any()


def chacha20(seed: bytes, size: int) -> NDArray[np.uint64]:
    """RFC 8439, Sec. 2.3 and 2.4: the key stream from block 0 on, with a nonce of zeros."""
    stream, order = b"", ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                          (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))  # fmt: skip
    for block in range(-(-size // 8)):
        begin = [*np.frombuffer(b"expand 32-byte k" + seed, "<u4").tolist(), block, 0, 0, 0]
        state = list(begin)
        for a, b, c, d in order * 10:
            for x, y, z, shift in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                state[x] = (state[x] + state[y]) & 0xFFFFFFFF
                turned = state[z] ^ state[x]
                state[z] = (turned << shift | turned >> 32 - shift) & 0xFFFFFFFF
        stream += np.array([(x + y) & 0xFFFFFFFF for x, y in zip(state, begin, strict=True)], "<u4").tobytes()
    return np.frombuffer(stream, "<u8")[:size]


def test_a_client_sends_nothing_where_its_masks_would_hide_nothing() -> None:
    each, keys = pair()
    numbers = np.ones(5, dtype=np.int64)
    for shown, why in (
        ({0: keys[0], 1: keys[1]}, "fewer than 3"),
        ({k: keys[k] for k in (1, 2, 3)}, "key of client 0"),
        (keys | {0: RoundKey(0, 1).public}, "key of client 0"),
        (keys | {2: "00" * 32}, "X25519"),
    ):
        with pytest.raises(ExchangeError, match=why):
            each[0].masked(numbers, shown)
    assert require_key(keys[0]) == keys[0]
