"""The planner widget: one's own layout beside the planner's best, under a limit of memory."""

from __future__ import annotations

from typing import Any

import pytest

from labkit.costs import PRESETS, Machines, plan
from labkit.errors import LabkitError
from labkit.widgets import planner
from labkit.widgets.planning import BATCH, compute
from tests.widgets.traits import changes

# -- compute


def test_the_best_is_the_planner_s() -> None:
    best = plan(PRESETS["GPT-3"], Machines(1024), BATCH).best
    made = compute("GPT-3", 1024, pipeline=8, tensor=8)
    assert made.best is not None and made.best.seconds == pytest.approx(best.seconds)
    assert made.fitting == len(plan(PRESETS["GPT-3"], Machines(1024), BATCH))


def test_it_opens_on_devices_that_cannot_hold_the_model_and_splitting_it_mends_that() -> None:
    made = compute()
    assert not made.ok and "Does not fit: 1.13 TB" in made.sentence
    assert compute(pipeline=8, tensor=8).ok


def test_less_memory_leaves_fewer_layouts_down_to_none() -> None:
    many, few = (compute(pipeline=8, tensor=8, memory=memory).fitting for memory in (80e9, 24e9))
    assert many > few
    none = compute("GPT-3", 8, memory=16e9)
    assert none.best is None and "No layout does" in none.sentence


def test_a_layout_of_ones_own_may_be_the_best_that_is_known() -> None:
    made = compute("GPT-3", 1024, pipeline=16, tensor=8, microbatch=2)
    assert made.best is not None and made.best.seconds <= made.mine.seconds


@pytest.mark.parametrize(
    "settings",
    [{"model": "GPT-7"}, {"devices": 8, "pipeline": 16}, {"tensor": 7}, {"zero": 3, "pipeline": 2}, {"memory": 0.0}],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_controls_change_the_pictures_and_the_formula() -> None:
    view = planner()
    for name, value in [("pipeline", 8), ("tensor", 8), ("microbatch", 2), ("devices", 512), ("model", "Llama-3 405B")]:
        if name != "model":
            assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"


def test_zero_recomputation_and_memory_are_in_the_picture() -> None:
    view = planner()
    view.controls["pipeline"].value = view.controls["tensor"].value = 8
    for name, value in [("zero", 0), ("recompute", "full"), ("memory", 40e9)]:
        before = view.still()
        view.controls[name].value = value
        assert view.still() != before, name


def test_devices_that_cannot_be_split_so_are_a_sentence() -> None:
    view = planner(devices=8)
    view.controls["pipeline"].value = 16
    assert "no multiple of pipeline 16" in view.sentence.value and view.image.layout.visibility == "hidden"
