"""Who is on the Pareto frontier."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from labkit.costs.pareto import pareto

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(POINTS)
def test_those_on_the_frontier_are_beaten_by_nobody_and_all_others_by_one_of_them(
    points: list[tuple[int, int]],
) -> None:
    best = pareto([cost for cost, _ in points], [gain for _, gain in points])

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    for k, point in enumerate(points):
        assert (k in best) == (not any(beats(other, point) for other in points))
    along = [points[k] for k in best]
    assert along == sorted(along)  # dearer and better from one to the next


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_point_that_is_not_finite_neither_wins_nor_beats(bad: float) -> None:
    assert pareto([1.0, bad, 2.0], [0.5, 0.9, 0.6]) == (0, 2)
    assert pareto([1.0, 0.5, 2.0], [0.5, np.nan, 0.6]) == (0, 2)


def test_nobody_of_nobody() -> None:
    assert pareto([], []) == ()
