"""Names stand beside their points and never on each other."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given, settings, strategies as st

from labkit.plots.frontier import place

ROOM = (200.0, 190.0)
HEIGHT = 10.0
PLACES = st.tuples(st.floats(0, ROOM[0]), st.floats(0, ROOM[1]))


def boxes(anchors, widths, lines=()):
    low = place(anchors, widths, HEIGHT, ROOM, np.array(lines).reshape(-1, 2))
    return [(x, y, x + width, y + HEIGHT) for (x, y), width in zip(low.tolist(), widths, strict=True)]


def apart(one, other):
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(PLACES, st.floats(10, 90)), min_size=1, max_size=10))
def test_no_name_lies_on_another_or_outside_however_the_points_lie(points):
    made = boxes([at for at, _ in points], [width for _, width in points])
    assert all(apart(one, other) for one, other in combinations(made, 2))
    assert all(x0 >= 0 and x1 <= ROOM[0] and y0 >= 0 and y1 <= ROOM[1] for x0, y0, x1, y1 in made)


def test_a_lonely_name_stands_right_of_its_point_or_left_where_there_is_no_room():
    assert boxes([(50, 50)], [40])[0][:2] == (57, 45)
    assert boxes([(190, 50)], [40])[0][:2] == (143, 45)


def test_ten_points_in_one_place_have_ten_names_apart():
    made = boxes([(100, 100)] * 10, [60] * 10)
    assert all(apart(one, other) for one, other in combinations(made, 2))
    assert max(np.hypot((x0 + x1) / 2 - 100, (y0 + y1) / 2 - 100) for x0, y0, x1, y1 in made) < 100


def test_a_name_makes_way_for_a_line():
    line = [(x, 50) for x in range(55, 120, 3)]
    x0, y0, x1, y1 = boxes([(50, 50)], [40], line)[0]
    assert not any(x0 <= x <= x1 and y0 <= y <= y1 for x, y in line)


def test_where_all_is_full_a_name_still_stands_somewhere_inside():
    made = boxes([(100, 100)] * 60, [90] * 60)
    assert all(x0 >= 0 and x1 <= ROOM[0] for x0, _, x1, _ in made)
