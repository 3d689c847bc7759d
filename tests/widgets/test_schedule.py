"""The schedule widget: plans beside their bound, and beside what real workers did."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from labkit.cards.cards import formulas
from labkit.cluster.lab import Lab
from labkit.errors import LabClosed, ScheduleError
from labkit.tasks.schedule import Schedule, schedule as plan
from labkit.widgets import schedule
from labkit.widgets.scheduling import MEAN_COST, POLICIES, ScheduleView, compute
from tests.widgets.traits import changes

# -- compute


@pytest.mark.parametrize("policy", POLICIES)
def test_every_setting_makes_a_schedule_no_better_than_its_bound(policy: str) -> None:
    for seed in range(5):
        made = compute(tasks=20, workers=4, policy=policy, uneven=0.6, dependencies=True, transfer=0.1, seed=seed)
        assert formulas["S"].holds(made.schedule)
        assert made.schedule.makespan >= made.schedule.lower_bound * (1 - 1e-9)
        for task, needed in enumerate(made.after):
            assert all(first < task for first in needed)
            assert all(made.schedule.finish[first] <= made.schedule.start[task] + 1e-9 for first in needed)


def test_the_costs_are_a_fifth_of_a_second_on_average_whatever_their_spread() -> None:
    for spread in (0.0, 0.6, 1.5):
        assert np.mean(compute(tasks=30, spread=spread).costs) == pytest.approx(MEAN_COST)
    assert len(set(compute(spread=0.0).costs)) == 1
    assert np.std(compute(spread=1.5).costs) > np.std(compute(spread=0.3).costs) > 0


def test_costs_of_one_s_own_are_taken_as_they_are() -> None:
    made = compute(workers=2, costs=[3, 3, 2, 2, 2])
    assert made.schedule == plan([3, 3, 2, 2, 2], 2, "lpt")
    assert r"C_{\max} &= 7\,\text{s} \;\ge\;" in made.latex and r"= 6\,\text{s}" in made.latex
    assert r"\frac{12}{7 \cdot 2} = 85.7\,\%" in made.latex
    assert "16.7% above the lower bound" in made.sentence


def test_the_formula_speaks_of_paths_only_where_tasks_wait_for_each_other() -> None:
    assert "longest task" in compute().latex and "longest path" not in compute().latex
    assert "longest path" in compute(dependencies=True).latex


def test_slower_workers_have_slower_speeds_down_to_the_last() -> None:
    assert compute(workers=3, uneven=0.8).schedule.speeds == pytest.approx([1.0, 0.6, 0.2])
    assert compute(workers=1, uneven=0.8).schedule.speeds == pytest.approx([1.0])


def test_a_transfer_counts_only_between_dependent_tasks() -> None:
    free = compute(workers=3, dependencies=True, policy="fifo").schedule.makespan
    dear = compute(workers=3, dependencies=True, policy="fifo", transfer=0.4).schedule.makespan
    assert dear > free
    assert compute(transfer=0.4).schedule == compute(transfer=0.0).schedule


@pytest.mark.parametrize(
    "settings", [{"costs": [1, -1]}, {"costs": [float("nan")]}, {"workers": 0}, {"policy": "luck"}, {"uneven": 1.0}]
)
def test_what_cannot_be_scheduled_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ScheduleError):
        compute(**settings)


# -- the view


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = schedule()
    for name, value in [
        ("tasks", 20),
        ("workers", 4),
        ("spread", 1.2),
        ("policy", "fifo"),
        ("uneven", 0.5),
        ("dependencies", True),
        ("transfer", 0.3),
        ("seed", 3),
    ]:
        assert changes(view, name, value), name
    made = compute(**view.settings)
    assert view.formula.value == f"$${made.latex}$$"
    assert "= 20" in view.formula.value


def test_the_transfer_can_be_moved_only_where_something_is_transferred() -> None:
    view = schedule()
    assert view.controls["transfer"].disabled
    view.controls["dependencies"].value = True
    assert not view.controls["transfer"].disabled


def test_a_measured_schedule_gives_the_tasks_and_stands_beside_every_plan_for_them() -> None:
    done = plan([0.4, 0.1, 0.3, 0.2], 2, "list")
    measured = Schedule.measured(done.worker, done.start * 1.1, done.finish * 1.1, workers=2)
    view = schedule(measured=measured)
    assert view.settings["workers"] == 2 and view.settings["tasks"] == 4
    assert view.controls["tasks"].disabled and view.controls["spread"].disabled
    assert r"\frac{1.1}{" in view.formula.value  # the work that was measured, in seconds
    said = f"Measured: {measured.makespan:.3g} s where"
    assert said in view.sentence.value
    alone = schedule(costs=(measured.finish - measured.start).tolist())
    alone.controls["workers"].value = 2
    assert alone.formula.value == view.formula.value and alone.image.value != view.image.value
    assert changes(view, "policy", "fifo") and said in view.sentence.value


def test_costs_that_cannot_be_are_a_sentence() -> None:
    assert "task 1 costs -1" in schedule(costs=[1, -1]).sentence.value
    assert "give one number" in schedule(costs=[]).sentence.value
    with pytest.raises(ScheduleError, match="cannot be read as numbers"):
        schedule(costs=["much"])  # type: ignore[list-item]


# -- on real workers


def run(view: ScheduleView, until: Callable[[], bool]) -> None:
    """Press the button, and wait until something is so."""
    view.button.click()
    end = time.monotonic() + 60
    while not until() and time.monotonic() < end:
        time.sleep(0.05)
    assert until(), view.sentence.value


def test_a_view_without_a_lab_has_no_button() -> None:
    for view in (schedule(), schedule(costs=[1, 2])):
        assert view.button not in view.children[0].children


def test_the_button_runs_the_tasks_on_the_lab_s_workers_and_draws_what_they_did(lab: Lab) -> None:
    view = schedule(lab=lab, costs=[0.3, 0.05, 0.1, 0.05, 0.1])
    assert view.settings["workers"] == len(lab.workers) and view.controls["workers"].disabled
    predicted = view.image.value
    run(view, lambda: "Measured" in view.sentence.value)
    assert view.image.value != predicted
    assert not view.button.disabled
    measured = view.measured
    assert measured is not None
    assert formulas["S"].holds(measured) and measured.kind == "measured"
    assert (
        measured.finish - measured.start >= np.array([0.3, 0.05, 0.1, 0.05, 0.1]) - 1e-3
    ).all()  # in the tasks' order
    assert set(measured.worker) <= set(range(len(lab.workers)))
    assert measured.makespan < 5

    overlaid = view.image.value
    view.controls["policy"].value = "fifo"  # not what was run
    assert "Measured" not in view.sentence.value
    view.controls["policy"].value = "lpt"
    assert view.image.value == overlaid


def test_the_run_shows_nothing_outside_the_widget(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr("labkit.cluster.job.in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)
    view = schedule(lab=lab, costs=[0.01, 0.01])
    run(view, lambda: "Measured" in view.sentence.value)
    assert shown == []


def test_what_the_lab_cannot_honour_is_not_sent_to_it(lab: Lab) -> None:
    view = schedule(lab=lab)
    view.controls["uneven"].value = 0.5
    view.button.click()
    assert "set uneven to 0" in view.sentence.value and "Measured" not in view.sentence.value
    view.controls["uneven"].value = 0.0
    assert "Predicted" in view.sentence.value


def test_a_lab_that_is_closed_in_the_meantime_is_a_sentence() -> None:
    class Closed:
        workers = ("one", "two")

        def map(self, fn: object, items: object) -> object:
            raise LabClosed("this lab is closed: call lk.connect() for a new one.")

    view = schedule(lab=Closed())  # type: ignore[arg-type]
    assert view.button in view.children[0].children
    view.button.click()
    assert "this lab is closed" in view.sentence.value and not view.button.disabled
    assert changes(view, "tasks", 20)
