"""The staleness widget: its pushes are those of the simulated server, and its laws hold for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.costs.staleness import stable_rate, stalest
from labkit.errors import LabkitError
from labkit.text import BAD
from labkit.widgets import staleness
from labkit.widgets.stale_gradients import POLICIES, compute, descend
from tests.widgets.traits import changes

POLICY = {"BSP": lk.BSP(), "SSP": lk.SSP(2), "ASP": lk.ASP()}

# -- compute


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("straggler", [1.0, 3.0])
def test_a_push_is_as_stale_as_the_simulated_server_says(policy: str, straggler: float) -> None:
    times, rounds = [straggler, 1.0, 1.0], 10
    clock = lk.Simulator(speeds=[1 / each for each in times], step_seconds=1.0)
    server = lk.algorithms.ParameterServer(POLICY[policy])
    settings = {"peers": 3, "rounds": rounds, "on": clock, "evaluate_every": rounds}
    real = lk.train(lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), server, **settings).result()
    made = descend(times, POLICY[policy], 0.1, until=rounds)  # before the first one there has done all its rounds
    for peer in range(3):
        own = made.staleness[made.peer == peer]
        assert len(own) >= rounds // 3 and own.tolist() == real.staleness[peer][: len(own)].tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_no_push_is_staler_than_the_policy_allows(policy: str) -> None:
    for workers in (1, 2, 5, 12):
        for straggler in (1.0, 2.75, 6.0):
            made = compute(workers=workers, straggler=straggler, policy=policy, staleness=2)
            assert made.most <= stalest(POLICY[policy].bound, workers)


def test_where_all_are_equally_fast_a_push_has_missed_one_of_each_other_peer() -> None:
    made = compute(workers=6, straggler=1.0, policy="ASP")
    assert set(made.descent.staleness[6:].tolist()) == {5}


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_equally_fast_peers_diverge_where_the_law_says(workers: int) -> None:
    limit = workers * stable_rate(workers - 1)
    below, above = (descend([1.0] * workers, lk.ASP(), factor * limit, until=400.0) for factor in (0.97, 1.05))
    assert below.loss[-1] < 0.3 and not below.diverges
    assert above.diverges
    made = compute(workers=workers, straggler=1.0, rate=2.0)
    assert made.stable == pytest.approx(limit)


def test_a_barrier_makes_the_steps_of_one_machine() -> None:
    """All peers have one slope here, so that n gradients at η/n are one step of plain descent."""
    barrier, alone = descend([2.0, 1.0, 1.0], lk.BSP(), 0.7, until=20.0), descend([2.0], lk.BSP(), 0.7, until=20.0)
    assert barrier.loss[2::3] == pytest.approx(alone.loss)
    assert (barrier.seconds[2::3] == alone.seconds).all()


def test_the_numbers_of_a_small_case_by_hand() -> None:
    made = descend([2.0, 1.0], lk.ASP(), 0.1, until=4.0)
    # pushes: 1 at 1 s; both at 2 s, peer 0 first; 1 at 3 s; both at 4 s
    assert made.seconds.tolist() == [1, 2, 2, 3, 4, 4]
    assert made.peer.tolist() == [1, 0, 1, 1, 0, 1]
    assert made.staleness.tolist() == [0, 1, 1, 0, 2, 1]


def test_who_waits_for_nobody_gets_further_in_the_same_time() -> None:
    made = compute(workers=4, straggler=3.0, policy="ASP", rate=0.5)
    assert made.descent.loss[-1] < 0.7 * made.barrier.loss[-1]
    assert len(made.descent.loss) > 2 * len(made.barrier.loss)


@pytest.mark.parametrize("settings", [{"policy": "FIFO"}, {"workers": 0}, {"straggler": 0.0}, {"rate": -1.0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


def test_nothing_is_pushed_before_the_first_step_ends() -> None:
    made = descend([2.0], lk.BSP(), 0.1, until=1.0)
    assert len(made.loss) == 0 and not made.diverges


# -- the view


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = staleness()
    for name, value in [("workers", 7), ("straggler", 2.0), ("rate", 1.7), ("policy", "SSP"), ("staleness", 5)]:
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"


def test_a_rate_that_is_too_high_is_said_in_the_colour_of_alarm() -> None:
    view = staleness()
    for name, value in {"straggler": 1.0, "workers": 8, "rate": 2.0}.items():
        view.controls[name].value = value
    assert "it diverges" in view.sentence.value and BAD in view.sentence.value
    assert r"\ge" in view.formula.value
    view.controls["rate"].value = 1.0
    assert BAD not in view.sentence.value


def test_s_can_be_moved_only_where_it_counts() -> None:
    view = staleness(policy="SSP")
    assert not view.controls["staleness"].disabled
    view.controls["policy"].value = "ASP"
    assert view.controls["staleness"].disabled and r"\infty" in view.formula.value


def test_one_worker_alone_is_never_stale() -> None:
    view = staleness()
    view.controls["workers"].value = 1
    assert r"\bar\tau = 0" in view.formula.value
    assert np.all(compute(workers=1).descent.staleness == 0)
