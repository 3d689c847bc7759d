"""The step-through widget: every message of a training, one click after another."""

from __future__ import annotations

import pytest

from labkit.errors import SettingError
from labkit.widgets import step_through
from labkit.widgets.messages import ALGORITHMS, MOST, compute
from tests.widgets.traits import changes

LINEAR = 4 * 650  # bytes of a linear classifier of digits


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_can_be_stepped_through(algorithm: str) -> None:
    moments = [compute(algorithm, peers=4, message=k) for k in (1, 2, 3)]
    assert [moment.barrier.round for moment in moments] == [1, 2, 3]
    assert moments[2].sent == pytest.approx(sum(m.barrier.bytes * len(m.barrier.peers) / 4 for m in moments))
    assert moments[0].loss is None and moments[1].loss is not None


def test_what_is_sent_by_hand() -> None:
    assert compute("all-reduce, star", peers=5).barrier.bytes == 2 * 4 / 5 * LINEAR
    assert compute("gossip on a ring", peers=5).barrier.bytes == 2 * LINEAR
    half = compute("FedAvg, half of them", peers=6, message=2)
    assert len(half.barrier.peers) == 3
    # a server hears 650 numbers from each of three, by half of the six, twice
    assert half.sent == pytest.approx(4 * 650)


def test_going_back_shows_what_was_there_and_another_seed_something_else() -> None:
    one, two = compute(message=1), compute(message=2)
    assert compute(message=1) is one and two is not one
    assert compute(message=1, seed=1).barrier.digests != one.barrier.digests


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"algorithm": "telepathy"}, "telepathy"),
        ({"algorithm": "co-teaching", "peers": 3}, "even number"),
        ({"algorithm": "mutual learning", "peers": 1}, "takes two"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        compute(**settings)  # type: ignore[arg-type]


def test_the_button_goes_on_until_the_end() -> None:
    view = step_through()
    before = view.image.value
    view.next.click()
    assert view.controls["message"].value == 2 and view.image.value != before
    assert "round 2" in view.sentence.value and "training loss of round 1" in view.sentence.value
    view.controls["message"].value = MOST
    assert view.next.disabled
    view.controls["message"].value = MOST - 1
    assert not view.next.disabled


@pytest.mark.parametrize(("name", "value"), [("algorithm", "gossip on a ring"), ("peers", 6), ("message", 3)])
def test_controls_change_the_picture_and_the_formula(name: str, value: object) -> None:
    assert changes(step_through(), name, value)


def test_an_algorithm_that_peers_do_not_fit_is_one_sentence_in_the_view() -> None:
    view = step_through("co-teaching")
    view.controls["peers"].value = 3
    assert "even number" in view.sentence.value and view.image.layout.visibility == "hidden"
