"""A prediction: the first lock counts, the result waits for it, and what a notebook saves of it does not change."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

import labkit as lk
from labkit.errors import SettingError
from labkit.widgets import calibration
from labkit.widgets.prediction import Guess

SPEED = "How many times as fast are two workers?"
CHOICES = ("equal", "equal up to rounding", "similar")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of this test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "_unwritten", [])
    return tmp_path


def speed(**settings: Any) -> Guess:
    return lk.predict(SPEED, unit="×", low=0.5, high=4, **settings)


# -- Locking


def test_the_first_lock_counts_and_a_later_one_is_shown_as_a_change() -> None:
    guess = speed()
    guess.control.value = 2.4
    guess.button.click()
    assert guess.locked and guess.said == 2.4 and guess.control.disabled and guess.button.description == "Change it"
    guess.button.click()
    guess.control.value = 1.5
    guess.button.click()
    assert guess.said == 2.4 and guess.control.disabled
    assert "Locked in: 2.4 ×. Changed later to 1.5 ×; the first one counts." in guess.status.value
    said = guess.reveal(1.72).sentence
    assert said == (
        "You predicted 2.4 ×; measured: 1.72 ×. That is 40 % too high. Changed later to 1.5 ×; the first one counts."
    )


def test_locking_the_same_again_is_no_change() -> None:
    guess = speed()
    guess.lock(2.0)
    guess.lock(2.0)
    assert guess.outcome(1.0, "measured").changes == ()


def test_a_cell_that_is_run_again_and_a_kernel_that_is_restarted_keep_the_lock() -> None:
    speed().lock(2.5)
    again = speed()
    assert again.locked and again.said == 2.5 and again.control.value == 2.5 and again.control.disabled
    again.lock(1.5)
    third = speed()
    assert third.said == 2.5 and third.control.value == 1.5 and third.outcome(1.0, "measured").changes == (1.5,)


def test_a_locked_number_stands_though_the_slider_is_another_one_by_now() -> None:
    speed().lock(3.9)
    narrow = lk.predict(SPEED, unit="×", low=0, high=1.0)
    assert narrow.said == 3.9 and narrow.control.value == 1.0
    lk.predict("Which?", choices=CHOICES).lock("similar")
    assert lk.predict("Which?", choices=("a", "b")).said == "similar"


def test_where_the_data_folder_cannot_be_written_the_kernel_remembers(folder: Path) -> None:
    (folder / "labkit").write_text("no folder")
    guess = speed()
    guess.lock(2.0)
    assert "cannot be kept longer than this kernel lives" in guess.status.value
    assert speed().said == 2.0 and [it.said for it in lk.predictions().records] == [2.0]


# -- The result


def test_the_result_waits_for_the_lock_and_comes_with_it() -> None:
    guess = speed()
    shown = guess.reveal(1.72)
    assert "1.72" not in shown.said.value and shown.picture not in shown.children and shown.button in shown.children
    guess.control.value = 2.0
    shown.button.click()  # as good as the one above
    assert guess.locked and guess.said == 2.0
    assert shown.picture in shown.children and shown.button not in shown.children
    assert "You predicted 2 ×; measured: 1.72 ×. That is 16 % too high." in shown.said.value
    assert 'alt="How many times as fast are two workers? You predicted 2 ×' in shown.picture.value


def test_without_a_person_the_default_stands_the_text_is_the_same_and_the_picture_shows_the_numbers() -> None:
    first, second = (speed().reveal(measured) for measured in (1.5, 1.9))
    (one, told), (two, _) = first._repr_mimebundle_(), second._repr_mimebundle_()
    assert one["text/plain"] == two["text/plain"] == f"Prediction and measured: {SPEED}"
    assert one["image/png"] != two["image/png"]
    assert "Nobody locked in a prediction, which stood at 2.25 ×; measured: 1.5 ×." in told["image/png"]["alt"]
    assert not calibration.path().exists()
    assert repr(speed()) == f"Prediction: {SPEED}"


def test_a_choice_is_right_or_wrong() -> None:
    guess = lk.predict("How far apart?", choices=CHOICES)
    guess.lock("similar")
    assert guess.reveal("equal up to rounding").sentence == (
        "You predicted similar; measured: equal up to rounding. That is wrong."
    )
    assert guess.reveal("similar", how="by the formula").sentence.endswith("by the formula: similar. That is right.")


@pytest.mark.parametrize("measured", [float("nan"), float("inf"), "fast", None, True])
def test_what_cannot_have_been_measured_is_refused(measured: Any) -> None:
    with pytest.raises(SettingError, match="measured is"):
        speed().reveal(measured)
    with pytest.raises(SettingError, match="choose one of equal"):
        lk.predict("Which?", choices=CHOICES).reveal(3.0)  # type: ignore[arg-type]


def test_numbers_of_arrays_and_tensors_are_numbers() -> None:
    import numpy as np
    import torch

    for measured in (np.float64(1.5), torch.tensor(1.5), np.int64(2)):
        assert "measured: " in speed().reveal(measured).sentence


@pytest.mark.parametrize(
    ("said", "measured", "unit", "missed"),
    [
        (2.0, 2.0, "×", "exactly right"),
        (2.0, 1.96, "×", "right, to within 5 %"),
        (1.0, 1.25, "s", "20 % too low"),
        (1.0, 10.0, "s", "10 times too low"),
        (25.0, 52.0, "%", "27 points too low"),
        (0.0, 3.0, "kinds", "3 kinds too low"),
    ],
)
def test_by_how_much_it_missed(said: float, measured: float, unit: str, missed: str) -> None:
    assert calibration.missed_by(said, measured, unit) == missed


# -- The scale


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "Give the prediction a scale"),
        ({"low": 1.0}, "Give the prediction a scale"),
        ({"low": 4.0, "high": 1.0}, "low < high"),
        ({"low": 0.0, "high": 1.0, "log": True}, "above zero"),
        ({"low": 0.0, "high": 1.0, "start": 3.0}, "start is 3"),
        ({"low": "a", "high": 1.0}, "low is 'a'"),
        ({"choices": ("one",)}, "at least two"),
        ({"choices": "abc"}, "at least two"),
        ({"choices": ("a", "b"), "start": "c"}, "choose one of a, b"),
    ],
)
def test_a_scale_that_is_none_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingError, match=why):
        lk.predict("Why?", **settings)


def test_a_question_is_needed() -> None:
    with pytest.raises(SettingError, match="needs a question"):
        lk.predict("", low=0, high=1)


def test_whole_ends_make_whole_steps_and_ratios_are_spaced_evenly() -> None:
    kinds = lk.predict("How many of ten?", low=0, high=10)
    assert (kinds.control.step, kinds.control.value) == (1.0, 5.0)
    wide = lk.predict("How many bytes?", low=1, high=10_000, log=True)
    assert wide.control.value == pytest.approx(100)


# -- All lessons together


def test_the_calibration_reads_the_file_of_all_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    for lesson, question, said, measured in [
        ("00_a", "q1", 2.0, 1.0),
        ("04_b", "q2", 4.0, 1.0),
        ("04_b", "q3", 1.1, 1),
    ]:
        monkeypatch.setenv("JPY_SESSION_NAME", f"lessons/{lesson}.ipynb")
        guess = lk.predict(question, low=0.0, high=5.0)
        guess.lock(said)
        guess.reveal(measured)
        guess.reveal(100.0)  # the first time counts
    choice = lk.predict("q4", choices=CHOICES)
    choice.lock("equal")
    choice.reveal("equal")
    lk.predict("q5", choices=CHOICES).lock("equal")
    mine = lk.predictions()
    assert [it.lesson for it in mine.records] == ["00_a", "04_b", "04_b", "04_b", "04_b"]
    assert mine.sentence == (
        "4 predictions in 2 lessons. 1 of 3 numbers lie within a quarter; on the whole you are 2.06 times too high. "
        "1 of 1 choices are right."
    )
    assert [row[-1] for row in mine.table.rows] == [
        "2 times too high", "4 times too high", "10 % too high", "right", "not measured yet"
    ]  # fmt: skip
    shown, _ = mine._repr_mimebundle_()
    assert f'alt="Your predictions over the measured numbers. {mine.sentence}"' in shown["text/html"]
    assert f"<p>{mine.sentence}</p>" in shown["text/html"] and shown["text/plain"].endswith(mine.sentence)


def test_the_file_is_for_its_user_alone_and_can_be_forgotten() -> None:
    speed().lock(2.0)
    path = calibration.path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    lk.predictions().forget()
    assert not path.exists() and not speed().locked
    assert repr(lk.predictions()).startswith("No prediction has met its measurement yet")


def test_lines_that_nobody_finished_are_passed_over() -> None:
    speed().lock(2.0)
    with calibration.path().open("a") as file:
        file.write('{"event": "changed", "quest\n[]\n{"event": "locked", "question": "q", "value": null}\n')
        file.write(json.dumps({"event": "locked", "question": "late", "value": 1}) + "\n")
    assert list(calibration.records()) == [SPEED, "late"]
