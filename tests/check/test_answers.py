"""What happens to an answer: its time is limited, it cannot end the kernel, and the card never tells the solution."""

from __future__ import annotations

import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from labkit import check
from labkit.check import limits
from labkit.check.answers import TookTooLong
from labkit.errors import CheckFailed
from tests.check.test_check import RIGHT, WRONG, block


def failed(exercise: str, fn: Callable[..., Any], **settings: Any) -> CheckFailed:
    with pytest.raises(CheckFailed) as caught:
        getattr(check, exercise)(fn, **settings)
    return caught.value


def plain(text: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", text)


@pytest.mark.parametrize(
    ("made", "said"),
    [(str, "expected one number"), (lambda it: 10**5000, "gave <int>; expected one number")],
    ids=["text", "too large"],
)
def test_what_only_looks_like_a_number_is_none(made: Callable[[float], Any], said: str) -> None:
    assert said in str(failed("amdahl", lambda p, n: made(1 / (1 - p + p / n))))


def test_a_number_of_torchs_is_one_also_with_a_gradient() -> None:
    ones = torch.ones((), dtype=torch.float64, requires_grad=True)
    assert check.amdahl(lambda p, n: ones / (1 - p + p / n)).points


# -- Limits


def forever(*_: Any) -> None:
    while True:
        pass


def stubborn(*_: Any) -> None:
    while True:
        try:
            while True:
                pass
        except Exception:  # noqa: BLE001
            continue


@pytest.mark.parametrize("loop", [forever, stubborn])
def test_a_loop_without_end_is_stopped_and_told(loop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    threads, started = threading.active_count(), time.monotonic()
    error = failed("ssp", loop)
    assert isinstance(error, TookTooLong)
    assert "has not ended after 0.3 s and was stopped: is there a loop without an end?" in str(error)
    assert time.monotonic() - started < 5  # the other properties are not waited for
    assert "bounded staleness (s > 0) (1 point): not tried" in plain(error.card)
    assert threading.active_count() == threads  # and nothing goes on in the background


def test_who_leaves_ends_nothing_but_the_answer() -> None:
    assert "called exit: end your function with a return instead" in str(failed("lost_rounds", lambda *_: sys.exit(3)))


# -- Fresh cases


@pytest.mark.parametrize("exercise", RIGHT)
def test_a_table_of_cases_seen_once_does_not_pass(exercise: str) -> None:
    seen: dict[str, Any] = {}

    def noting(*args: Any) -> Any:
        key = repr(args)  # before the answer may change what it is given
        seen[key] = RIGHT[exercise][0](*args)
        return seen[key]

    getattr(check, exercise)(noting)
    error = failed(exercise, lambda *args: seen.get(repr(args), 0))
    assert 0 <= error.points < error.of


@pytest.mark.parametrize("exercise", RIGHT)
def test_a_seed_gives_the_same_cases_again_and_the_card_names_it(exercise: str) -> None:
    def asked(seed: int | None) -> list[str]:
        calls = []

        def noting(*args: Any) -> Any:
            calls.append(repr(args))
            return RIGHT[exercise][0](*args)

        getattr(check, exercise)(noting, seed=seed)
        return calls

    assert asked(5) == asked(5) != asked(6)
    assert asked(None) != asked(None)
    wrong = next(fn for name, fn, _ in WRONG if name == exercise)
    seed = re.search(r"The same cases once more: add seed=(\d+)\.", failed(exercise, wrong).card)
    assert seed and str(failed(exercise, wrong, seed=int(seed[1]))) == str(failed(exercise, wrong, seed=int(seed[1])))


# -- Points


def ceil_chunks(n: int, parts: int) -> list[list[int]]:
    found = [list(range(start, n, 1))[: -(-n // parts)] for start in range(0, n, -(-n // parts))]
    return found + [[]] * (parts - len(found))


def test_each_property_has_its_points_and_its_reason() -> None:
    error = failed("split", ceil_chunks)
    assert (error.points, error.of) == (2.0, 3.0)
    card = plain(error.card)
    assert card.startswith("✗ split: 2 of 3 points\n  ✓ no index is lost or held twice (1 point)\n  ✗ sizes differ")
    assert "split(7, 3)\n          gave      parts of [3, 3, 1] items\n" in card
    assert "✓ blocks of neighbours, in order (1 point)" in card


def test_a_grader_that_gives_points_for_parts_gets_them(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    assert repr(check.split(ceil_chunks)) == "2"
    assert "split: 2 of 3 points" in plain(capsys.readouterr().out)
    assert repr(check.split(block)).startswith("✓ split")  # all of them
    failed("split", lambda n, parts: [[7]] * parts)  # and none fail the cell


# -- What is shown


@pytest.mark.parametrize(("exercise", "fn"), [(name, fn) for name, fn, _ in WRONG])
def test_no_line_of_labkit_is_shown(exercise: str, fn: Callable[..., Any]) -> None:
    error = failed(exercise, fn)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame.line for frame in frames if "labkit" in Path(frame.filename).parts[-3:]]
    assert ours == ["raise told.with_traceback(None) from told.__cause__"]
    (card,) = error._render_traceback_()
    assert card == error.card and "gave" in card and "expected" in card and "hint" in card


def test_of_an_answer_that_raises_only_its_own_lines_are_shown() -> None:
    def mine(done: int, every: int) -> float:
        return done / 0

    error = failed("lost_rounds", mine)
    assert str(error).endswith("raised ZeroDivisionError: division by zero.")
    assert "return done / 0" in error.card and "labkit/" not in error.card.replace(str(Path(__file__)), "")
    assert [frame.name for frame in traceback.extract_tb(error.__cause__.__traceback__)] == ["mine"]


CELLS = {
    "wrong": "lk.check.lost_rounds(lambda done, every: done)",
    "raises": "def mine(done, every):\n    return [][done]\nlk.check.lost_rounds(mine)",
    "exit": "lk.check.lost_rounds(lambda done, every: exit())",
    "sys.exit": "import sys\nlk.check.lost_rounds(lambda done, every: sys.exit())",
    "endless": "def mine(done, every):\n    while True: pass\nlk.check.lost_rounds(mine)",
    "right": "lk.check.lost_rounds(lambda done, every: done % every)",
}


@pytest.mark.paired
def test_in_a_kernel_each_failure_is_one_card_fails_the_cell_and_leaves_the_kernel_alive() -> None:
    first = "import labkit as lk\nfrom labkit.check import limits\nlimits.SECONDS = 1.0"
    notebook = new_notebook(cells=[new_code_cell(first), *map(new_code_cell, CELLS.values())])
    NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=True).execute()
    shown = {name: cell.outputs[-1] for name, cell in zip(CELLS, notebook.cells[1:], strict=True)}
    assert shown.pop("right")["data"]["text/plain"] == "✓ lost_rounds: 27 cases right"
    for name, output in shown.items():
        assert output.output_type == "error" and output.ename in ("CheckFailed", "TookTooLong"), name
        card = plain("\n".join(output.traceback))
        assert card.startswith("✗ lost_rounds(7, 5)") and "%" not in card and "labkit" not in card
    assert "return [][done]" in "".join(shown["raises"].traceback)
    assert "hint      the last checkpoint was made after round 5" in "".join(shown["wrong"].traceback)
    nbformat.validate(notebook)
