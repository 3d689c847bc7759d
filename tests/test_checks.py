"""The checks of arguments: what is taken, what is refused, and the sentence that says what to give."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from labkit.checks import number, one_of, whole
from labkit.errors import ScheduleError, SettingError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_any_make_become_ints(value):
    assert type(whole(value, "n")) is int


@pytest.mark.parametrize("value", [True, np.True_, 2.0, "3", None, math.nan, [1]])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(SettingError, match=r"^n is .*, which is no whole number; give an int of at least 1\.$"):
        whole(value, "n")


def test_whole_numbers_out_of_range_are_refused():
    with pytest.raises(ScheduleError, match=r"^n is -1; give at least 0\.$"):
        whole(-1, "n", ScheduleError, least=0)
    with pytest.raises(SettingError, match=r"^n is 8; give 1 to 7\.$"):
        whole(8, "n", most=7)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(1), Fraction(1, 2)])
def test_numbers_of_any_make_become_floats(value):
    assert type(number(value, "x")) is float


@pytest.mark.parametrize("value", [True, np.True_, "1", None, math.nan, math.inf, -0.1, [1.0]])
def test_what_is_no_number_from_zero_on_is_refused(value):
    with pytest.raises(SettingError, match=r"^x is .*; give a number from 0 on\.$"):
        number(value, "x")


@pytest.mark.parametrize(
    ("value", "limits", "says"),
    [
        (1.5, {"most": 1}, "from 0 to 1"),
        (0, {"most": 1, "above": True}, "above 0 up to 1"),
        (1, {"most": 1, "below": True}, "from 0 on, below 1"),
        (0, {"above": True}, "above 0"),
        (0, {"most": math.inf, "above": True}, "above 0"),
        (math.nan, {"least": 1, "most": math.inf}, "from 1 on"),
    ],
)
def test_a_refusal_tells_the_range(value, limits, says):
    with pytest.raises(SettingError, match=rf"^x is {value}; give a number {says}\.$"):
        number(value, "x", **limits)


def test_infinity_is_taken_where_the_range_reaches_it():
    assert number(math.inf, "x", most=math.inf) == math.inf


def test_a_unit_stands_for_the_number():
    with pytest.raises(SettingError, match=r"^pause is -1; give seconds from 0 on\.$"):
        number(-1, "pause", unit="seconds")


def test_what_is_none_of_the_options_is_refused_with_them():
    assert one_of("b", "kind", ["a", "b"]) == "b"
    for value in ("c", None, ["a"]):
        with pytest.raises(ScheduleError, match=r"^kind=.* is unknown; choose one of a, b\.$"):
            one_of(value, "kind", {"a": 1, "b": 2}, ScheduleError)
