"""The class board: one histogram from three voters on, without names; only for those who are let in; nobody waits."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from labkit import check, predict
from labkit.classroom.notes import VOTERS, Notes
from labkit.classroom.posting import post
from labkit.tasks.schedule import schedule
from tests.classroom.serving import TOKEN, ask, running_board


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running_board() as address:
        yield address


def question(address: str, name: str) -> dict[str, object]:
    state = json.loads(ask(f"{address}/state")[1])
    return next(it for it in state["questions"] if it["question"] == name)


def test_three_voters_make_a_histogram_and_two_do_not(address: str) -> None:
    for count, student in enumerate(("ada", "grace", "emmy"), 1):
        note = {"event": "locked", "question": "How fast?", "unit": "×", "value": count, "lesson": "05_speed_up"}
        assert ask(f"{address}/note?as={student}", note)[0] == 200
        assert ask(f"{address}/note?as={student}", note | {"value": 99})[0] == 200  # the first one counts
        shown = question(address, "How fast?")
        assert shown["voters"] == count and bool(shown["bars"]) == (count == 3)
    assert sum(number for _, number in shown["bars"]) == 3
    state = ask(f"{address}/state")[1].decode()
    assert "ada" not in state and "99" not in state
    assert json.loads(state)["lessons"] == {"05_speed_up": 3}


@pytest.mark.parametrize("token", ["", "wrong"])
def test_strangers_see_and_tell_nothing(address: str, token: str) -> None:
    for path, event in (("/", None), ("/state", None), ("/note", {"event": "passed", "exercise": "forged"})):
        assert ask(address + path, event, token)[0] == 403
    assert b"forged" not in ask(f"{address}/state")[1]


def test_what_is_no_note_is_refused(address: str) -> None:
    for event in ([], "x", {"event": "locked"}, {"event": "locked", "question": "q", "value": True},
                  {"event": "locked", "question": "q", "value": float("nan")}, {"event": "odd", "exercise": "e"},
                  {"event": "passed", "exercise": "x" * 5000}):  # fmt: skip
        assert ask(f"{address}/note", event)[0] == 400


def test_numbers_that_no_histogram_can_draw_are_no_notes() -> None:
    """One such number would leave the board of a whole class empty."""
    for odd in (5e-324, -1.7e308, 1.7e308, float("inf"), float("nan"), 10**400):
        notes = Notes()
        for student, value in {"ada": 0, "grace": 0.0, "emmy": -1e99, "max": odd}.items():
            assert notes.take(student, {"event": "locked", "question": "q", "value": value}) is (student != "max")
        assert sum(count for _, count in notes.shown()["questions"][0]["bars"]) == 3


def test_nobody_fills_the_board_for_all() -> None:
    notes = Notes()
    taken = [notes.take("max", {"event": "passed", "exercise": f"e{number}"}) for number in range(600)]
    taken += [notes.take("max", {"event": "locked", "question": f"q{number}", "value": 1}) for number in range(600)]
    assert 10 < sum(taken) < 100
    assert notes.take("ada", {"event": "locked", "question": "How fast?", "value": 2})
    assert notes.take("max", {"event": "locked", "question": "How fast?", "value": 2})  # named by another


def test_the_page_says_how_many_predictions_are_needed(address: str) -> None:
    assert f"of {VOTERS} predictions needed" in ask(f"{address}/")[1].decode()


def test_a_proxy_for_the_world_outside_is_not_asked(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0)
        patch.setattr(urllib.request, "_opener", None)  # which remembers that there was no proxy
        for name in ("http_proxy", "HTTP_PROXY"):
            patch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            patch.delenv(name, raising=False)
        patch.setenv("LABKIT_BOARD", address)
        patch.setenv("JUPYTERHUB_API_TOKEN", TOKEN)
        sending = post({"event": "locked", "question": "Behind a proxy?", "value": 1})
        assert sending is not None
        sending.join(20)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert question(address, "Behind a proxy?")["voters"] == 1


def test_what_students_write_is_text_on_the_page(address: str) -> None:
    page = ask(f"{address}/")[1].decode()
    assert "innerHTML" not in page and "textContent" in page


def test_a_prediction_and_a_passed_check_reach_the_board(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_BOARD", address)
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", TOKEN)
    monkeypatch.setenv("JPY_SESSION_NAME", "course/02_splitting.ipynb")
    predict("How many parts?", low=1, high=9).lock(4)
    check.speedup(lambda serial, parallel, workers: (serial / parallel, serial / parallel / workers))
    check.schedule(schedule(check.PUZZLE, 3, "lpt"), makespan=20)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        state = json.loads(ask(f"{address}/state")[1])
        if {"speedup", "schedule"} <= set(state["passed"]) and "02_splitting" in state["lessons"]:
            break
        time.sleep(0.1)
    assert question(address, "How many parts?")["voters"] == 1
    assert {"speedup": 1, "schedule": 1}.items() <= state["passed"].items()


def test_a_board_that_does_not_answer_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("LABKIT_BOARD", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        predict("And now?", low=1, high=9).lock(4)
        assert time.monotonic() - begin < 2
    monkeypatch.delenv("LABKIT_BOARD")
    assert post({"event": "passed", "exercise": "x"}) is None


def test_the_teacher_sees_who_is_where() -> None:
    notes = Notes()
    notes.take("ada", {"event": "passed", "exercise": "split", "lesson": "02_splitting"})
    assert notes.shown(names=True)["who"] == {"ada": "02_splitting"}
    assert "ada" not in str(notes.shown())


def test_the_board_s_ordinary_pages_need_no_torch() -> None:
    """It serves a class beside thirty kernels; only a training of the class imports what takes memory."""
    command = "import sys, labkit.classroom.board; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0
