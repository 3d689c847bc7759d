"""The compression widget: its numbers are those of labkit's own compressors, and error feedback gives back the sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from labkit.algorithms import Compressed
from labkit.errors import LabkitError
from labkit.exchange import QSGD, Compressor, Half, Mean, RandomK, Sign, TopK
from labkit.text import BAD
from labkit.widgets import compression
from labkit.widgets.compression import METHODS, MODEL, NUMBERS, compute
from tests.algorithms.hand import Tell, alone, in_lockstep
from tests.widgets.traits import changes

LABKIT: dict[str, Compressor] = {
    "top-k": TopK(0.25), "random-k": RandomK(0.25), "signs": Sign(), "QSGD": QSGD(127), "16 bits": Half(),
}  # fmt: skip

# -- compute


@pytest.mark.parametrize("method", METHODS)
def test_messages_and_bytes_are_those_of_labkit_s_own_compressors(method: str) -> None:
    made, own = compute(method, share=0.25, levels=127, rounds=5), LABKIT[method]
    assert made.compressor == own and made.nbytes == own.nbytes(NUMBERS)
    for key, (x, arrived) in enumerate(zip(made.wanted, made.sent, strict=True)):
        packed = own.encode(torch.from_numpy(x).float(), key)
        assert own.decode(packed, NUMBERS, key).numpy() == pytest.approx(arrived)
    message = own.message(Mean(torch.zeros(NUMBERS)), packed, NUMBERS)
    assert message.bytes(2) == made.nbytes  # of two peers each sends its code once


@pytest.mark.parametrize("method", ["top-k", "signs", "16 bits"])
@pytest.mark.parametrize("feedback", [False, True])
def test_it_sends_what_an_algorithm_wrapped_in_compressed_sends(method: str, feedback: bool) -> None:
    made, (peer,) = compute(method, share=0.25, feedback=feedback, rounds=6), alone(1)
    for number, (x, arrived) in enumerate(zip(made.wanted, made.sent, strict=True), start=1):
        peer.number = number
        told = {"w": torch.from_numpy(x).float()[None]}
        in_lockstep(Compressed(Tell(told), LABKIT[method], feedback), [peer])
        assert peer.state["reply"]["w"].numpy() == pytest.approx(arrived, abs=1e-3 if method == "16 bits" else 1e-5)


@pytest.mark.parametrize("method", ["top-k", "random-k", "signs"])
def test_feedback_makes_up_for_what_was_left_out_and_without_it_the_error_stays(method: str) -> None:
    forgets, remembers = (compute(method, share=0.25, feedback=it, rounds=200) for it in (False, True))
    assert remembers.left < 0.05 < 0.35 < forgets.left
    assert remembers.off[False] == pytest.approx(forgets.off[False])  # both pictures show both
    late, early = remembers.off[True][[199, 49]]
    assert late < 0.5 * early  # what is kept is bounded, and the sum is not


def test_top_k_that_forgets_never_sends_the_small_numbers() -> None:
    made = compute("top-k", share=0.05, rounds=200)
    silent = (made.sent == 0).all(axis=0)
    assert silent[-20:].all() and not silent[:3].any() and made.silent == int(silent.sum())
    assert np.abs(made.wanted.sum(axis=0)[silent]).min() > 20  # they have said the same 200 times


def test_the_error_that_is_told_is_that_of_a_message() -> None:
    made = compute("top-k", share=0.25, rounds=3)
    errors = np.linalg.norm(made.sent - made.wanted, axis=1) / np.linalg.norm(made.wanted, axis=1)
    assert made.error == pytest.approx(errors.mean(), rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"method": "zip"}, {"share": 0.0}, {"share": 0.001}, {"rounds": 0}, {"method": "QSGD", "levels": 200},
     {"method": "QSGD", "levels": 1, "feedback": True}],
)  # fmt: skip
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_it_opens_on_numbers_that_are_never_heard_and_feedback_mends_it() -> None:
    view = compression()
    assert "43 of 64 numbers have never been sent" in view.sentence.value and BAD in view.sentence.value
    assert f"of 256 bytes (400 kB of {4 * MODEL // 10**6} MB" in view.sentence.value
    view.controls["feedback"].value = True
    assert "Each number has been sent" in view.sentence.value and BAD not in view.sentence.value


def test_what_does_not_matter_is_disabled_and_qsgd_s_error_is_not_fed_back() -> None:
    view = compression(feedback=True)
    assert not view.controls["share"].disabled and view.controls["levels"].disabled
    view.controls["method"].value = "QSGD"
    assert view.controls["share"].disabled and not view.controls["levels"].disabled
    assert "give more levels, or leave feedback off" in view.sentence.value
    view.controls["levels"].value = 127
    assert "Each number has been sent" in view.sentence.value


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = compression()
    for name, value in [("share", 0.25), ("feedback", True), ("rounds", 30), ("seed", 3), ("method", "signs")]:
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"
