"""The picture of the frontier shows every algorithm and where its figures come from."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from labkit.plots.frontier import Trail, _height, _log_scale, _marks, _seconds, draw
from labkit.text import amount


def trail(name="A", final=0.9, sent=1e6, seconds=10.0, points=5):
    share = np.linspace(1 / points, 1, points)
    return Trail(name, (final * share).tolist(), (sent * share).tolist(), (seconds * share).tolist())


def picture(*trails):
    names = [it.name for it in trails]
    return draw(trails, best=(names, names[:1]), title="T", bytes_are="by formula", seconds_are="virtual clock")


@pytest.mark.parametrize(
    "trails",
    [
        (),
        (Trail("waiting", (), (), ()),),
        (trail(points=1),),
        (trail(), Trail("waiting", (), (), ())),
        (trail(sent=0.0),),
        (trail(sent=0.0, seconds=0.0), trail("B", 0.0)),
        (trail(seconds=1e-5), trail("B", seconds=1e4)),
        tuple(trail(f"algorithm {k}", 0.9 + k / 1000, 1e6 * 2**k) for k in range(23)),
    ],
    ids=["none", "not begun", "one point", "one of two", "no bytes", "no time", "far apart", "many"],
)
def test_whatever_was_measured_can_be_drawn(trails):
    assert picture(*trails).png().startswith(b"\x89PNG")


def test_the_words_beside_the_picture_name_ends_and_sources():
    alt = picture(trail("DDP", 0.95), trail("local", 0.91)).alt
    assert "DDP 95.0%; local 91.0%" in alt and "by formula" in alt and "virtual clock" in alt


def test_a_better_end_makes_another_picture():
    assert picture(trail(), trail("B", 0.8)).png() != picture(trail(), trail("B", 0.95)).png()


def test_who_is_on_the_frontier_has_a_filled_square_in_its_panel_and_others_a_hollow_one():
    left, right = picture(trail(), trail("B", 0.8)).figure.axes  # in the helper: both by bytes, the first by seconds
    squares = [[it for it in ax.collections if it.get_zorder() == 4] for ax in (left, right)]
    hollow = [[np.allclose(it.get_facecolor(), 1) for it in row] for row in squares]
    assert hollow == [[False, False], [False, True]]


def test_a_cost_of_nothing_stands_apart_at_the_left_of_a_logarithmic_axis():
    scale = _log_scale([[0.0], [1e6]], "bytes", amount)
    (place,) = scale.along([0.0], np.zeros(1))[:, 0]
    dear = scale.along([10.0, 1e6], np.zeros(2))[:, 0]  # ten bytes would stand left of nothing
    assert len(dear) == 1 and scale.marks[0] == (place, "0")
    assert scale.low < place < scale.marks[1][0] < dear[0] < scale.high


def test_times_that_are_far_apart_have_a_logarithmic_axis_and_others_begin_at_nothing():
    near, far = _seconds([[1.0, 5.0], [2.0, 9.0]], "measured"), _seconds([[1.0], [100.0]], "measured")
    assert not near.log and near.low == 0.0 and far.log and "log" in far.label


def test_half_as_many_errors_are_the_same_step_up_wherever():
    low, middle, high = _height([0.92, 0.96, 0.98])
    assert high - middle == pytest.approx(middle - low)
    assert np.isfinite(_height([1.0])).all()


@pytest.mark.parametrize("ends", [(0.0, 0.3), (0.5, 0.99), (0.951, 0.962), (0.9, 1.0)])
def test_ticks_are_apart_and_say_where_they_are(ends):
    low, high = _height(ends)
    marks = sorted(_marks(low, high, 0.05 * (high - low)))
    assert len(marks) >= 2
    assert all(b - a > 0.05 * (high - low) for (a, _), (b, _) in pairwise(marks))
    assert [y for y, _ in marks] == pytest.approx(_height([float(text.rstrip("%")) / 100 for _, text in marks]))
