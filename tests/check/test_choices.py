"""Choices and cases are judged by real runs: what holds passes, what does not is told the number that came back."""

from __future__ import annotations

from typing import Any

import pytest

from labkit import check
from labkit.algorithms import (
    AllReduce,
    Byzantine,
    Ensemble,
    FedAvg,
    FedAvgM,
    Gossip,
    LocalSGD,
    Robust,
)
from labkit.cards.lessons import LESSONS as LESSONS_THERE
from labkit.cluster.lab import Lab
from labkit.data import ByLabel
from labkit.errors import CheckFailed
from labkit.exchange import TrimmedMean

GOOD: dict[str, Any] = {
    "slow link": (LocalSGD(32), 8),
    "a liar": (Robust(AllReduce(), TrimmedMean(1)), 5),
    "unequal data": (FedAvgM(every=16), 1.8),
}
BAD: list[tuple[str, Any, str]] = [
    ("slow link", (AllReduce(), 5), "1.0 times as fast"),
    ("slow link", (Ensemble(), 5), "one model for all"),
    ("slow link", (LocalSGD(32), 20), "the 20 that you claim"),
    ("slow link", (LocalSGD(32), 2), "at least 5 times"),
    ("slow link", LocalSGD(32), "the claim as a number"),
    ("slow link", (LocalSGD, 5), "no algorithm"),
    ("slow link", ..., "no answer"),
    ("a liar", (AllReduce(), 4), "whoever shouts"),
    ("a liar", (Gossip("ring"), 4), "Nobody can lie"),
    ("unequal data", (FedAvg(every=16), 1.5), "between two meetings"),
    ("unequal data", (FedAvg(every=1), 1.5), "at most a tenth"),
]
LESSONS = dict(zip(check.CLAIMS, [3, 4, 5, 13, 14, 15, 17, 18, None, None], strict=True))
LIAR = (Byzantine(AllReduce(), peers=(0,), scale=10.0), None)
SKEWED = (FedAvg(every=8), ByLabel(2))


def test_choices_that_hold_pass() -> None:
    assert "3 of 3 points" in repr(check.choices(GOOD))


@pytest.mark.parametrize(("situation", "answer", "said"), BAD, ids=[f"{it[0]}: {it[2]}" for it in BAD])
def test_a_choice_that_does_not_hold_is_told_what_came_back(
    situation: str, answer: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {situation: check.choices.__wrapped__.__globals__["_situations"]()[situation]}  # the others take seconds
    monkeypatch.setitem(check.choices.__wrapped__.__globals__, "_situations", lambda: one)
    with pytest.raises(CheckFailed, match=said):
        check.choices(GOOD | {situation: answer})


@pytest.mark.paired
def test_the_bytes_of_the_choice_for_a_slow_link_are_counted_on_real_workers(lab: Lab) -> None:
    assert "4 of 4 points" in repr(check.choices(GOOD, lab))


def test_cases_that_help_and_harm_pass() -> None:
    assert "3 of 3 points" in repr(check.cases({"helps": SKEWED, "harms": LIAR}))


CASES: list[tuple[Any, Any, str]] = [
    ((AllReduce(), None), LIAR, "alone knows too little"),
    ((Ensemble(), ByLabel(2)), LIAR, "needs a message"),
    (SKEWED, (AllReduce(), None), "whom does an average believe"),
    (SKEWED, LIAR[:1], "give \\(algorithm, shards\\)"),
    ((FedAvg(every=8), ByLabel(1)), LIAR, "does not run"),
]


@pytest.mark.parametrize(("helps", "harms", "said"), CASES)
def test_cases_that_do_not_are_told_by_how_much(helps: Any, harms: Any, said: str) -> None:
    with pytest.raises(CheckFailed, match=said):
        check.cases({"helps": helps, "harms": harms})


def test_evidence_in_the_right_lessons_passes() -> None:
    assert "3 of 3 points" in repr(check.evidence(LESSONS))


EVIDENCE: list[tuple[Any, str, int]] = [
    (LESSONS | {check.CLAIMS[0]: 2}, "dealt out", 1),
    (LESSONS | {check.CLAIMS[4]: None}, "labels are wrong", 1),
    (LESSONS | {check.CLAIMS[-2]: 5}, "ever run", 2),
    ({it: LESSONS[it] for it in check.CLAIMS[1:]}, "no answer yet", 1),
    (LESSONS | {check.CLAIMS[1]: ...}, "no answer yet", 1),
]


@pytest.mark.parametrize(("answers", "said", "points"), EVIDENCE)
def test_evidence_elsewhere_is_told_where_to_look(answers: Any, said: str, points: int) -> None:
    with pytest.raises(CheckFailed, match=said) as caught:
        check.evidence(answers)
    assert caught.value.points == points and "13" not in str(caught.value)


def test_a_claim_that_is_none_is_refused() -> None:
    with pytest.raises(CheckFailed, match="none of lk"):
        check.evidence(LESSONS | {"the earth is flat": 1})


def test_the_lessons_named_as_evidence_are_there() -> None:
    """Whoever renumbers the lessons has to look at the claims."""
    assert all(it in LESSONS_THERE for it in LESSONS.values() if it is not None)
