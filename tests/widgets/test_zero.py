"""The ZeRO widget: what it says of memory and messages is what the algorithm holds and sends."""

from __future__ import annotations

from typing import Any

import pytest

from labkit.costs import states
from labkit.errors import LabkitError
from labkit.text import BAD
from labkit.widgets import zero
from labkit.widgets.sharding import KEPT, compute
from tests.widgets.traits import changes

PSI = 229_450

# -- compute


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("peers", [2, 5])
def test_a_step_sends_what_zero_s_paper_says(stage: int, peers: int) -> None:
    sent = sum(moment.nbytes for moment in compute(stage, peers).moments)
    times = 3 if stage == 3 else 2
    assert sent == pytest.approx(
        times * (peers - 1) / peers * 4 * PSI, rel=1e-4
    )  # parts are filled up to whole numbers


def test_stage_3_holds_one_layer_whole_at_a_time_and_its_shards_after_the_step() -> None:
    made = compute(3, 4)
    assert all(len(moment.gathered) <= 1 and len(moment.gradients) <= 1 for moment in made.moments)
    at_rest = sum(made.moments[-1].bytes(what, made.sizes, 4, 3) for what in ("parameters", "optimiser"))
    whole = made.moments[-1].gathered
    shards = states(PSI, zero=3, data=4, precision="float32")
    assert at_rest - 4 * sum(made.sizes[k] for k in whole) == pytest.approx(shards.parameters + shards.optimizer)


def test_memory_falls_from_stage_to_stage_and_with_more_peers() -> None:
    peaks = [compute(stage, 4).peak for stage in range(4)]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] == 16 * PSI
    assert compute(3, 8).peak < compute(3, 4).peak < compute(3, 2).peak
    assert sum(KEPT.values()) == 16


def test_it_opens_on_a_model_that_does_not_fit_and_stage_3_mends_it() -> None:
    assert [compute(stage).ok for stage in range(4)] == [False, False, False, True]


def test_stages_1_and_2_gather_once_and_stage_3_layer_by_layer_both_ways() -> None:
    names = {stage: [moment.name for moment in compute(stage).moments] for stage in (0, 1, 2, 3)}
    assert names[0] == ["Mean"] and names[1] == ["AllGather", "ReduceScatter"]
    assert names[2] == ["AllGather"] + ["ReduceScatter"] * 4
    assert names[3] == ["AllGather"] * 4 + ["AllGather", "ReduceScatter"] * 4
    assert [moment.layers for moment in compute(3).moments[:4]] == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize("settings", [{"stage": 4}, {"peers": 1}, {"message": 0}, {"limit": 0.0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_stage_and_peers_change_picture_and_formula() -> None:
    view = zero()
    for name, value in [("stage", 3), ("peers", 6), ("stage", 2)]:
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"


def test_the_message_moves_what_is_whole_and_ends_with_the_step() -> None:
    view = zero(stage=3)
    assert view.controls["message"].max == 12
    before = view.still(), view.sentence.value
    view.controls["message"].value = 7
    assert view.still() != before[0] and view.sentence.value != before[1]
    view.controls["stage"].value = 1
    assert view.controls["message"].max == view.controls["message"].value == 2


def test_less_memory_raises_the_alarm() -> None:
    view = zero(stage=3)
    assert "inherit" in view.sentence.value
    view.controls["limit"].value = 1e6
    assert BAD in view.sentence.value and "is more than the 1 MB" in view.sentence.value
