"""The synchronize widget: who waits for whom, and what everyone has finished."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from labkit.cards.cards import formulas
from labkit.errors import ScheduleError, SettingError
from labkit.tasks.sync import SSP
from labkit.widgets import synchronize
from labkit.widgets.pictures import timeline_at
from labkit.widgets.synchronization import POLICIES, compute
from tests.widgets.traits import changes

# -- compute


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_its_promise(policy: str) -> None:
    for seed in range(5):
        made = compute(workers=5, steps=12, policy=policy, staleness=1, jitter=0.8, seed=seed)
        assert formulas["T_sync"].holds(made.timeline)
    assert made.timeline.staleness.max() <= {"BSP": 0, "SSP": 1, "ASP": np.inf}[policy]


def test_what_is_common_is_the_intersection_of_the_sets_at_every_moment() -> None:
    for moment in np.linspace(0, 1, 21):
        made = compute(workers=4, steps=9, policy="ASP", jitter=1.0, moment=moment)
        finished = [{k for k, end in enumerate(row) if end <= made.moment} for row in made.timeline.finish]
        assert made.common == len(set.intersection(*finished))
        assert made.done == tuple(len(some) for some in finished)
    assert made.common == 9  # at the end


def test_the_first_worker_is_the_straggler() -> None:
    busy = compute(workers=3, steps=6, straggler=3.0, jitter=0.0).timeline.busy
    assert busy == pytest.approx([18.0, 6.0, 6.0])


def test_the_numbers_of_a_small_case_by_hand() -> None:
    made = compute(workers=2, steps=4, straggler=2.0, jitter=0.0, policy="SSP", staleness=1, moment=0.5)
    # worker 0 ends its steps at 2, 4, 6, 8; worker 1 begins 0 1 2 4, so ends at 1 2 3 5
    assert made.timeline.finish.tolist() == [[2, 4, 6, 8], [1, 2, 3, 5]]
    assert made.moment == 4.0 and made.done == (2, 3) and made.common == 2
    assert made.idle == pytest.approx(4 / 16)
    assert dict(made.ends) == {"BSP": 8.0, "SSP": 8.0, "ASP": 8.0}
    assert r"\{0,1\} \cap \{0,1,2\} = \{0,1\}, \qquad t = 4\,\text{s}" in made.latex
    assert r"\min(2 , 3) = 2" in made.latex and r"= 25\,\%" in made.latex
    assert r"\text{staleness} = 1 \le 1" in made.latex
    assert "2 of 4 steps are finished by all, the fastest worker is 1 further" in made.sentence


def test_a_looser_bound_never_ends_later() -> None:
    for seed in range(10):
        ends = compute(workers=6, steps=15, straggler=1.0, jitter=0.9, staleness=2, seed=seed).ends
        assert ends["BSP"] >= ends["SSP"] >= ends["ASP"]
        assert ends["BSP"] > ends["ASP"]


def test_nothing_is_common_before_anything_is_finished() -> None:
    made = compute(moment=0.0)
    assert made.common == 0 and r"\varnothing" in made.latex


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"policy": "FIFO"}, SettingError),
        ({"workers": 0}, ScheduleError),
        ({"steps": 0}, ScheduleError),
        ({"staleness": -1}, ScheduleError),
        ({"straggler": -2.0}, ScheduleError),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        compute(**settings)


def test_workers_that_take_no_time_are_drawn_too() -> None:
    nothing = np.zeros((2, 3))
    assert timeline_at(nothing, nothing, 0.0, 3, alt="nothing").png()


# -- the view


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = synchronize()
    for name, value in [
        ("workers", 3),
        ("steps", 12),
        ("straggler", 2.5),
        ("jitter", 0.8),
        ("staleness", 5),
        ("moment", 0.8),
        ("seed", 7),
        ("policy", "BSP"),
    ]:
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"
    assert r"\text{staleness} = 0 \le 0" in view.formula.value


def test_moving_the_moment_moves_the_frontier_from_nothing_to_everything() -> None:
    view = synchronize()
    seen = []
    for moment in (0.0, 0.3, 0.6, 1.0):
        view.controls["moment"].value = moment
        seen.append(compute(**view.settings).common)
        assert f"= {seen[-1]}" in view.formula.value
    assert seen[0] == 0 and seen[-1] == 8 and seen == sorted(seen)


def test_s_can_be_moved_only_where_it_counts() -> None:
    view = synchronize()
    assert not view.controls["staleness"].disabled
    view.controls["policy"].value = "ASP"
    assert view.controls["staleness"].disabled and r"\le \infty" in view.formula.value
    assert synchronize(policy="BSP").controls["staleness"].disabled


def test_bounded_staleness_lies_between_the_barrier_and_nothing() -> None:
    made = [compute(policy=policy, staleness=s, jitter=0.9) for policy, s in [("SSP", 0), ("BSP", 9), ("SSP", 99)]]
    assert made[0].timeline.finish.tolist() == made[1].timeline.finish.tolist()
    assert made[2].timeline.makespan == made[2].ends["ASP"]
    assert made[0].timeline.policy == SSP(0)
