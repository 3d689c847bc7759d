"""Tasks that are put by hand: the makespan is that of the busiest worker, and what cannot be is refused."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.errors import ScheduleError
from labkit.tasks.schedule import schedule
from labkit.widgets.assignment import STARTS, assignment, compute


@pytest.mark.parametrize("policy", ["round-robin", "list", "lpt"])
def test_the_assignment_of_a_policy_takes_no_longer_than_the_policy(policy: str) -> None:
    view = assignment(start=policy)
    plan = schedule(view.costs.tolist(), 3, policy)
    assert view.made.schedule.makespan == pytest.approx(plan.makespan)
    assert view.made.schedule.lower_bound == pytest.approx(plan.lower_bound)
    assert view.made.ok or policy != "lpt"


def test_a_moved_task_takes_its_time_along_and_others_close_up() -> None:
    view = assignment([0.3, 0.1, 0.4, 0.2], start="all on one", workers=2)
    costs = view.costs
    view.move(1, 1)
    made = view.made.schedule
    np.testing.assert_allclose(made.busy, [costs[[0, 2, 3]].sum(), costs[1]])
    np.testing.assert_allclose(made.start, [0, 0, costs[0], costs[0] + costs[2]])
    assert f"{made.makespan:.3g} s" in view.sentence.value


def test_other_tasks_begin_with_the_assignment_that_is_chosen() -> None:
    view = assignment(workers=3)
    view.move(0, 2)
    view.controls["tasks"].value = 12
    assert list(view.gantt.worker) == STARTS["equal blocks"](view.costs, 3)
    view.controls["start"].value = "all on one"
    assert set(view.gantt.worker) == {0}
    view.controls["workers"].value = 1
    view.controls["seed"].value = 5
    assert view.made.ok and "no assignment ends sooner" in view.sentence.value


def test_it_opens_on_a_problem_that_can_be_mended() -> None:
    view = assignment()
    assert not view.made.ok and "move a task" in view.sentence.value
    for task, worker in enumerate(STARTS["lpt"](view.costs, 3)):
        view.move(task, worker)
    assert view.made.ok


@pytest.mark.parametrize(
    ("worker", "said"), [([0], "1 workers for 2 tasks"), ([0, 3], "worker 3"), ([0, -1], "worker")]
)
def test_what_cannot_be_is_refused(worker: list[int], said: str) -> None:
    with pytest.raises(ScheduleError, match=said):
        compute(worker, costs=[1.0, 2.0], workers=3)


def test_a_task_that_there_is_not_moves_nowhere() -> None:
    view = assignment()
    before = list(view.gantt.worker)
    for task, worker in ((9, 0), (0, 3), (-1, 0)):
        with pytest.raises(ScheduleError):
            view.move(task, worker)
    assert list(view.gantt.worker) == before


def test_given_costs_stay_and_costs_that_cannot_be_are_refused() -> None:
    view = assignment([5, 4, 3], workers=2)
    assert view.controls["tasks"].disabled and view.costs.tolist() == [5, 4, 3]
    view.move(1, 1)
    assert view.plan == [0, 1, 1] and view.made.schedule.makespan == 7
    with pytest.raises(ScheduleError, match="costs -1"):
        assignment([1, -1])
