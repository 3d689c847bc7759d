"""The failure widget: one training under the same failures, saved at two intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from labkit.costs.checkpoints import slowdown
from labkit.errors import SettingError
from labkit.widgets import failure
from labkit.widgets.failures import RESTART, WORK, compute
from tests.widgets.traits import changes

# -- compute


def test_a_run_does_all_its_work_and_what_it_spends_adds_up() -> None:
    for seed in range(10):
        made = compute(every=45, cost=2, mtbf=100, seed=seed)
        assert made.spent("compute") == pytest.approx(WORK)
        whole = sum(made.spent(kind) for kind in ("compute", "checkpoint", "lost", "restart"))
        assert whole == pytest.approx(made.runs["every k"][-1].end)


def test_on_average_over_seeds_it_takes_as_long_as_the_exact_formula_says() -> None:
    ends = [compute(every=50, cost=2, mtbf=150, seed=seed).runs["every k"][-1].end for seed in range(400)]
    assert np.mean(ends) / WORK == pytest.approx(slowdown(50, 2, 150, RESTART), rel=0.03)
    assert compute(every=50, cost=2, mtbf=150).expected == slowdown(50, 2, 150, RESTART) - 1


def test_saved_at_its_best_interval_a_run_ends_earlier_on_average() -> None:
    for every in (5.0, 200.0):
        made = [compute(every=every, cost=2, mtbf=200, seed=seed).runs for seed in range(100)]
        assert np.mean([runs["every k"][-1].end - runs["every k*"][-1].end for runs in made]) > 0


def test_the_numbers_of_a_small_case_by_hand() -> None:
    made = compute(every=40, cost=1, mtbf=200)
    assert made.best == 20.0
    assert r"\frac{1}{40} + \frac{40}{400} = 12.5\,\%" in made.latex and r"= 10\,\%" in made.latex


@pytest.mark.parametrize("settings", [{"every": 0.0}, {"cost": -1.0}, {"mtbf": 0.0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        compute(**settings)


# -- the view


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = failure()
    for name, value in [("every", 120.0), ("cost", 5.0), ("mtbf", 100.0)]:
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"


def test_another_seed_brings_other_failures() -> None:
    view = failure()
    before = view.still(), view.sentence.value
    view.controls["seed"].value = 3
    assert view.still() != before[0] and view.sentence.value != before[1]


def test_a_best_interval_beyond_the_sliders_end_is_drawn_too() -> None:
    view = failure()
    view.controls["mtbf"].value, view.controls["cost"].value = 5000.0, 10.0
    assert compute(**view.settings).best > 300 and view.image.layout.visibility == "visible"
