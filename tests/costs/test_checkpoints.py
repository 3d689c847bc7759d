"""Checkpoints against failures that are drawn one by one, and against the published formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from labkit.costs.checkpoints import best_interval, lost_share, replay, slowdown
from labkit.errors import SettingError
from tests.examples import few


@pytest.mark.parametrize(("every", "restart"), [(60, 0), (60, 30), (20, 5), (300, 0)])
def test_the_exact_formula_is_the_mean_of_runs_whose_failures_are_drawn(every: float, restart: float) -> None:
    cost, mtbf, work = 3.0, 200.0, 600.0
    rng, ends = np.random.default_rng(0), []
    for _ in range(800):
        failures = np.cumsum(rng.exponential(mtbf, size=120)).tolist()
        ends.append(replay(work + 1e-9, every, cost, restart, failures)[-1].end)
    saved_at_the_end = slowdown(every, cost, mtbf, restart) * work
    spared = slowdown(every, cost, mtbf, restart) * every - slowdown(every, 0, mtbf, restart) * every  # the last one
    assert np.mean(ends) == pytest.approx(saved_at_the_end - spared, rel=0.03)


@given(st.floats(0.1, 10), st.floats(1e3, 1e6))
@few
def test_no_other_interval_loses_less_than_the_best(cost: float, mtbf: float) -> None:
    best = best_interval(cost, mtbf)
    least = lost_share(best, cost, mtbf)
    assert least == pytest.approx(math.sqrt(2 * cost / mtbf))
    assert cost / best == pytest.approx(best / (2 * mtbf))  # saving costs what doing again costs
    assert all(lost_share(best * factor, cost, mtbf) > least for factor in (0.1, 0.5, 0.9, 1.1, 2, 10))


def test_the_first_order_is_the_exact_formula_where_failures_are_rare() -> None:
    for every in (30.0, 100.0, 300.0):
        exact = slowdown(every, cost=1, mtbf=1e5) - 1
        assert lost_share(every, cost=1, mtbf=1e5) == pytest.approx(exact, rel=0.03)
    around = np.linspace(0.8, 1.2, 401) * best_interval(1, 1e5)
    exact_best = min(around, key=lambda every: slowdown(every, 1, 1e5))
    assert exact_best == pytest.approx(best_interval(1, 1e5), rel=0.01)


def test_a_run_that_never_fails_computes_and_saves_but_not_at_its_end() -> None:
    spans = replay(work=10, every=4, cost=1, restart=5, failures=[])
    kinds = [(span.kind, span.end - span.start) for span in spans]
    assert kinds == [("compute", 4), ("checkpoint", 1), ("compute", 4), ("checkpoint", 1), ("compute", 2)]


def test_a_failure_while_saving_or_restarting_counts_too() -> None:
    spans = replay(work=4, every=2, cost=1, restart=2, failures=[2.5, 3.5])  # while it saves, then while it restarts
    assert spans[:3] == [("lost", 0, 2.5), ("restart", 2.5, 5.5), ("compute", 5.5, 7.5)]
    assert spans[-1].end == 10.5


@given(
    st.floats(1, 50), st.floats(0.5, 20), st.floats(0, 3), st.floats(0, 5),
    st.lists(st.floats(0.01, 80), max_size=6, unique=True),
)  # fmt: skip
@few
def test_whatever_fails_all_the_work_is_done_and_no_moment_is_missing(
    work: float, every: float, cost: float, restart: float, failures: list[float]
) -> None:
    spans = replay(work, every, cost, restart, sorted(failures))
    assert sum(span.end - span.start for span in spans if span.kind == "compute") == pytest.approx(work)
    assert spans[0].start == 0
    assert all(one.end == pytest.approx(other.start) for one, other in pairwise(spans))
    assert all(span.end - span.start <= every + cost + 1e-9 for span in spans if span.kind == "lost")


@pytest.mark.parametrize(
    "make",
    [
        lambda: lost_share(0, 1, 10),
        lambda: lost_share(1, -1, 10),
        lambda: best_interval(1, 0),
        lambda: slowdown(1, 1, 10, restart=math.inf),
        lambda: replay(math.nan, 1, 1, 1, []),
    ],
)
def test_times_that_cannot_be_are_refused(make) -> None:
    with pytest.raises(SettingError, match=r" is .*; give seconds (above 0|from 0 on)\."):
        make()


def test_a_machine_that_fails_long_before_it_can_save_never_ends() -> None:
    assert slowdown(every=1e6, cost=1, mtbf=1) == math.inf


def test_failures_out_of_order_are_refused() -> None:
    with pytest.raises(SettingError, match="ascending order"):
        replay(10, 3, 0.5, 1, [5, 2])
