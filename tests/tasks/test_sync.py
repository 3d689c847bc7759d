"""The three ways to synchronise are one recurrence, and what waits, is stale, or is finished by all follows from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from labkit.checks import Floats
from labkit.errors import ScheduleError
from labkit.tasks.sync import ASP, BSP, SSP, Timeline, synchronize
from tests.examples import few

step_times = st.tuples(st.integers(1, 5), st.integers(1, 8)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(0, 9).map(float), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)
bounds = st.integers(0, 9)
policies = st.one_of(st.just(BSP()), st.just(ASP()), bounds.map(SSP))


def by_hand(times: list[list[float]], bound: float) -> Floats:
    """Ho et al. in their own words: clock k may begin when the slowest worker has finished clock k − s."""
    finish = np.zeros((len(times), len(times[0])))
    for k in range(len(times[0])):
        for i, mine in enumerate(times):
            start = finish[i, k - 1] if k else 0.0
            if k - 1 - bound >= 0:
                start = max(start, max(finish[j, k - 1 - int(bound)] for j in range(len(times))))
            finish[i, k] = start + mine[k]
    return finish


def same(a: Timeline, b: Timeline) -> bool:
    return np.array_equal(a.start, b.start) and np.array_equal(a.finish, b.finish)


@given(step_times)
@few
def test_no_staleness_is_bulk_synchronous_and_unlimited_is_asynchronous(times: list[list[float]]) -> None:
    assert same(synchronize(times, SSP(0)), synchronize(times, BSP()))
    assert same(synchronize(times, SSP(math.inf)), synchronize(times, ASP()))
    assert same(synchronize(times, SSP(len(times[0]))), synchronize(times, ASP()))


@given(step_times, bounds)
@few
def test_the_vectorised_recurrence_is_the_paper_s(times: list[list[float]], bound: int) -> None:
    assert np.array_equal(synchronize(times, SSP(bound)).finish, by_hand(times, bound))


@given(step_times, bounds)
@few
def test_more_staleness_never_takes_longer(times: list[list[float]], bound: int) -> None:
    strict, loose = synchronize(times, SSP(bound)), synchronize(times, SSP(bound + 1))
    assert (loose.finish <= strict.finish).all()
    assert synchronize(times, ASP()).makespan <= loose.makespan <= strict.makespan <= synchronize(times, BSP()).makespan


@given(step_times, policies)
@few
def test_nobody_begins_further_ahead_than_allowed(times: list[list[float]], policy: Any) -> None:
    line = synchronize(times, policy)
    assert line.staleness.max() <= policy.bound
    assert line.staleness.min() >= 0


@given(step_times, policies)
@few
def test_the_frontier_is_the_intersection_of_what_each_has_finished(times: list[list[float]], policy: Any) -> None:
    """|∩ 𝒯ᵢ| at every event, counted from the sets themselves."""
    line = synchronize(times, policy)
    for moment, frontier in zip(line.events, line.frontier, strict=True):
        finished = [{k for k in range(line.steps) if line.finish[i, k] <= moment} for i in range(line.workers)]
        assert frontier == len(set.intersection(*finished)) == line.frontier_at(moment)
    assert line.frontier[-1] == line.steps
    assert (np.diff(line.frontier) >= 0).all()


@given(step_times, policies)
@few
def test_every_second_is_spent_computing_or_idle(times: list[list[float]], policy: Any) -> None:
    line = synchronize(times, policy)
    assert np.allclose(line.busy, np.sum(times, axis=1))
    assert np.allclose(line.busy + line.idle, line.makespan)
    assert np.allclose(line.waiting.sum(axis=1) + line.busy, line.finish[:, -1])
    assert (line.waiting >= 0).all() and (line.idle >= -1e-9).all()


def test_a_barrier_costs_the_slowest_of_every_step() -> None:
    times = [[1, 5, 1], [4, 1, 1]]
    assert synchronize(times, BSP()).makespan == 4 + 5 + 1
    assert synchronize(times, ASP()).makespan == 7
    assert synchronize(times, BSP()).synchronized.tolist() == [4, 9, 10]
    assert not synchronize(times, ASP()).waiting.any()


def test_a_bounded_lead_lets_a_worker_run_ahead_and_then_wait() -> None:
    line = synchronize([[1, 1, 1, 1], [3, 3, 3, 3]], SSP(1))
    assert line.start[0].tolist() == [0, 1, 3, 6]
    assert line.staleness[0].tolist() == [0, 1, 1, 1]


def test_a_thousand_workers_and_steps_take_a_moment() -> None:
    line = synchronize(np.random.default_rng(0).exponential(size=(1000, 1000)), SSP(3))
    assert line.staleness.max() == 3
    assert line.frontier[-1] == 1000
    assert repr(line.plot())


def test_what_was_measured_starts_at_zero_and_is_the_same_type() -> None:
    line = Timeline.measured([[50.0, 52.0], [51.0, 53.0]], [[51.0, 53.0], [53.0, 54.5]], SSP(1))
    assert line.kind == "measured" and line.makespan == 4.5
    assert line.frontier.tolist() == [0, 1, 2]
    assert repr(line) == "Timeline of 2 workers and 2 steps, SSP(staleness=1), measured"
    with pytest.raises(ScheduleError, match="shape"):
        Timeline.measured([[1.0]], [[1.0, 2.0]], BSP())
    with pytest.raises(ScheduleError, match="overlap or end before"):
        Timeline.measured([[0.0, 1.0]], [[2.0, 3.0]], BSP())


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ([[1, math.nan]], "worker 0, step 1 is nan"),
        ([[1, 2], [3, -1]], "worker 1, step 1 is -1"),
        ([[math.inf]], "worker 0, step 0 is inf"),
        ([[1, 2], [3]], "rows of 1, 2 steps; give every worker as many"),
        ([1, 2], "give a list of seconds for each worker"),
        ([], "seconds as [workers, steps]"),
        ([[], []], "seconds as [workers, steps]"),
        ([["slow"]], "cannot be read as numbers"),
        (5, "give a list of seconds for each worker"),
    ],
)
def test_step_times_that_cannot_be_are_refused_with_cause_and_remedy(times: Any, says: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        synchronize(times, BSP())
    assert says in str(caught.value)


@pytest.mark.parametrize("bound", [-1, 0.5, math.nan, -math.inf, "2", True])
def test_a_staleness_bound_that_cannot_be_is_refused(bound: Any) -> None:
    with pytest.raises(ScheduleError, match="the staleness bound is"):
        SSP(bound)


@pytest.mark.parametrize("policy", [SSP, "bsp", None, 3])
def test_what_is_no_policy_is_refused(policy: Any) -> None:
    with pytest.raises(ScheduleError, match=r"none of BSP\(\), SSP\(s\) and ASP\(\)"):
        synchronize([[1]], policy)
