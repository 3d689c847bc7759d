"""The class as a cluster: students' kernels train one model together, and none can spoil it or hold up the rest."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.classroom.arrays import packed
from labkit.classroom.assignment import FAR
from labkit.errors import ConnectError, ExchangeError, SettingError
from tests.classroom.clients import SIZE, Raw, alone, differ, invited, until
from tests.classroom.serving import TOKEN, ask, running_board

KERNELS = multiprocessing.get_context("forkserver")
KERNELS.set_forkserver_preload(["torch._dynamo", "labkit.training.joining"])  # imported once for all of them


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    KERNELS.Process(target=time.time).start()  # the imports begin while the board starts
    with running_board() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_BOARD", address)
        patch.setenv("LABKIT_BOARD_TOKEN", TOKEN)
        yield address


def kernel(address: str, token: str, name: str, settings: dict[str, Any], answers: Any) -> None:
    """A student's kernel: it joins, and says what came of it."""
    os.environ |= {"LABKIT_BOARD": address, "LABKIT_BOARD_TOKEN": token}
    torch.set_num_threads(1)  # five kernels on two cores
    try:
        joined = lk.join(name=name, **settings)
        answers.put((name, joined.client, "joined"))
        history = joined.result(60)
        answers.put((name, joined.client, (history.final.accuracy, history.bytes, len(history.rows))))
    except KeyboardInterrupt:
        os._exit(3)


def test_kernels_with_two_digits_each_learn_all_ten_exactly_as_fedavg_does_and_the_board_answers_meanwhile(
    address: str,
) -> None:
    slowest, over = [0.0], threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            begun = time.perf_counter()
            assert ask(f"{address}/state")[0] == 200
            slowest[0] = max(slowest[0], time.perf_counter() - begun)

    looking = threading.Thread(target=look)
    looking.start()
    answers = KERNELS.Queue()
    try:
        with invited(5, labels=2, rounds=25, every=5, learning_rate=0.2) as invitation:
            names = [f"student {k}" for k in range(5)]
            kernels = [KERNELS.Process(target=kernel, args=(address, TOKEN, name, {}, answers)) for name in names]
            for process in kernels:
                process.start()
            history = invitation.result(60)
            for process in kernels:
                process.join(30)
            shown = json.loads(ask(f"{address}/federation/state")[1])["training"]
    finally:
        over.set()
        looking.join()
    told = [answers.get(timeout=5) for _ in range(10)]
    assert {client for _, client, _ in told} == set(range(5))
    assert history.final.accuracy is not None and history.final.accuracy > 0.8
    assert differ(history, alone(invitation.assignment)) < 1e-5
    each = 25 * len(packed(np.zeros(SIZE, dtype=np.float32)))
    assert [what for *_, what in told if what != "joined"] == [(history.final.accuracy, each, 25)] * 5
    assert {it["up"] for it in shown["clients"]} == {it["down"] - each // 25 for it in shown["clients"]} == {each}
    assert "student" not in json.dumps(shown)  # names are for teachers
    assert slowest[0] < 2.0, "the board stood still while it imported torch or added up"


def test_a_liar_spoils_the_mean_and_is_outvoted_by_a_robust_one_switched_on_before_the_class(address: str) -> None:
    with invited(5, rounds=200, every=5, learning_rate=0.2) as invitation:
        joined = [lk.join(name=f"s{k}", lie="flip" if k == 3 else None, scale=10.0) for k in range(5)]
        until(lambda: invitation.progress >= 6)
        assert invitation.history.rows[5].accuracy < 0.3
        assert all(it["outvoted"] == 0 for it in invitation.clients)
        invitation.change(rule="median")
        changed = invitation.progress
        until(lambda: max(row.accuracy for row in invitation.history.rows[changed:] or invitation.history.rows) > 0.8)
        shown = json.loads(ask(f"{address}/federation/state?as=teacher")[1])["training"]
    by_name = {it["name"]: it for it in shown["clients"]}
    assert by_name["s3"]["client"] == joined[3].client
    assert by_name["s3"]["outvoted"] > 5 and by_name["s3"]["distance"] > FAR
    assert sum(it["outvoted"] for it in shown["clients"]) == by_name["s3"]["outvoted"]
    assert shown["settings"]["rule"] == "median"


def test_absent_slow_and_leaving_clients_hold_up_no_round_beyond_its_limit(address: str) -> None:
    answers = KERNELS.Queue()
    with invited(5, rounds=12, wait=1.5) as invitation:
        absent = Raw(address, "absent")
        gone = absent.join()
        interrupted = KERNELS.Process(target=kernel, args=(address, TOKEN, "interrupted", {"delay": 0.2}, answers))
        interrupted.start()
        assert answers.get(timeout=30)[2] == "joined"
        steady = lk.join(name="steady")
        leaving = lk.join(name="leaving", rounds=1)
        slow = lk.join(name="slow", delay=0.4)
        absent.order("train")
        begun = time.monotonic()
        assert invitation.history.rows == []
        until(lambda: invitation.progress >= 2)
        assert time.monotonic() - begun > 1.0  # the first round waited for who had begun
        os.kill(interrupted.pid or 0, signal.SIGINT)
        history = invitation.result(30)
        assert time.monotonic() - begun < 1.5 + 12 * 1.2  # one limit, for it was waited for once
        interrupted.join(10)
        assert interrupted.exitcode == 3  # Ctrl-C ends it, and the board knows at once
        assert absent.send(1, np.zeros(SIZE, dtype=np.float32))[0] == 409
        states = {it["name"]: it for it in invitation.clients}
        shown = json.loads(ask(f"{address}/federation/state")[1])["training"]
    assert f"round 1 closed without client {gone}" in shown["events"]
    assert (states["absent"]["state"], states["leaving"]["state"], states["interrupted"]["state"]) == (
        "late", "left", "left",
    )  # fmt: skip
    assert (states["leaving"]["rounds"], states["steady"]["rounds"], states["slow"]["rounds"]) == (1, 12, 12)
    assert len(history.rows) == 12 and leaving.result(5).stopped and not steady.result(5).stopped
    assert slow.result(5).final.accuracy == history.final.accuracy


def test_what_is_no_update_is_refused_in_one_sentence_and_changes_nothing(address: str) -> None:
    with invited(2, rounds=3, wait=30.0):
        ada, grace, max_ = (Raw(address, name) for name in ("ada", "grace", "max"))
        ada.join()
        grace.join()
        zeros = np.zeros(SIZE, dtype=np.float32)
        refused = [(max_.ask("join", {}), 409, "places"), (max_.send(1, zeros), 403, "joined")]
        refused.append((max_.ask("invite", {"clients": 2}), 403, "teacher"))
        refused.append((Raw(address, "teacher").ask("invite", {"clients": 2}), 409, "already"))
        refused.append((Raw(address, "teacher").ask("steer", {"do": "change", "settings": {"seed": 1}}), 400, "seed"))
        ada.order("train", 1)
        before = ada.model()
        refused.append((grace.ask("update?round=1", packed(zeros), ticket=ada.ticket), 403, "ticket"))
        refused.append((ada.ask("update?round=1", packed(zeros), ticket=""), 403, "ticket"))
        refused.append((ada.send(2, zeros), 409, "not open"))
        nan = zeros.copy()
        nan[3] = np.nan
        for update, status, why in (
            (nan, 400, "NaN"),
            (zeros[1:], 400, "shape"),
            (zeros[:300].astype(np.float64), 400, "float64"),
            (zeros + 1e6, 400, "longer than the 100"),
            (pickle.dumps(print), 400, "npy"),
            (packed(np.zeros(3000, dtype=np.float32)), 413, "too long"),
            (b"x" * (20 << 20), 413, "too long"),
        ):
            refused.append((ada.send(1, update), status, why))
        for (status, answer), wanted, why in refused:
            assert status == wanted, (why, answer)
            assert why in answer["error"] and answer["error"].endswith(".") and "\n" not in answer["error"]
        assert ask(f"{address}/federation/update?round=1&as=ada", packed(zeros), token="", ticket=ada.ticket)[0] == 403
        assert np.array_equal(ada.model(), before)
        assert ada.send(1, zeros + 0.25)[0] == 200
        status, answer = ada.send(1, zeros)
        assert status == 409 and "one counts" in answer["error"]
        assert grace.send(1, zeros + 0.75)[0] == 200
        ada.order("train", 2)
        np.testing.assert_allclose(ada.model() - before, 0.5, atol=1e-3)  # shards of 719 and 718 examples


def test_clipping_bounds_what_one_client_can_do_and_the_noise_is_the_board_s_secret(address: str) -> None:
    moves = []
    for _ in range(2):
        with invited(1, rounds=3, clip=0.5, wait=30.0) as invitation:
            ada = Raw(address, "ada")
            ada.join()
            begin, update = ada.model(), np.full(SIZE, 1.0, dtype=np.float32)
            ada.order("train", 1)
            assert ada.send(1, update)[0] == 200
            ada.order("train", 2)
            clipped = ada.model()
            invitation.change(noise=2.0)
            assert ada.send(2, update)[0] == 200
            ada.order("train", 3)
            before = ada.model()
            assert ada.send(3, update)[0] == 200
            until(lambda: invitation.progress == 3)
            moves.append(ada.model() - before)
    assert np.linalg.norm(clipped - begin) == pytest.approx(0.5, rel=1e-3)
    assert np.std(moves[0]) == pytest.approx(2.0 * 0.5, rel=0.15)
    assert not np.allclose(moves[0], moves[1])  # the same settings, seed and round: nobody can take the noise off


def test_what_cannot_be_is_refused_before_anybody_is_invited(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, why in (
        ({"clients": 3, "rule": "krum", "bad": 2}, "7 peers"),
        ({"clients": 3, "noise": 1.0}, "clip"),
        ({"clients": 3, "masks": True, "rule": "median"}, "Secure"),
        ({"clients": 3, "rule": "best"}, "median"),
        ({"clients": 0}, "clients"),
    ):
        with pytest.raises(SettingError, match=why):
            lk.invite(**settings)
    with invited(2), pytest.raises(ExchangeError, match="already"):
        lk.invite(2)
    with pytest.raises(ExchangeError, match="ended"):
        lk.join()
    monkeypatch.delenv("LABKIT_BOARD")
    for call in (lk.join, partial(lk.invite, 2)):
        with pytest.raises(ConnectError, match="no class board here"):
            call()


def test_a_cell_that_ends_with_an_invitation_shows_it_before_anybody_has_come(address: str) -> None:
    with invited(2) as invitation:
        shown = invitation._repr_mimebundle_()
        assert shown["image/png"] and shown["text/plain"] == "Training of a class of 2"
        assert "0 of 2 places" in invitation.status or "waiting" in invitation.status
