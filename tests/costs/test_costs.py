"""The cost formulas give the figures of their sources, exactly."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, strategies as st

from labkit.costs.link import Link
from labkit.costs.speedup import amdahl, gustafson
from labkit.errors import SettingError
from tests.examples import few

shares = st.fractions(0, 1)
counts = st.integers(1, 10_000)


@given(shares, counts)
@few
def test_amdahl_is_the_old_time_over_the_new(p: Fraction, n: int) -> None:
    serial, parallel = 1 - p, p
    assert amdahl(p, n) == (serial + parallel) / (serial + parallel / n)  # type: ignore[arg-type]


@given(shares, counts)
@few
def test_gustafson_is_his_published_form(p: Fraction, n: int) -> None:
    """Comm. ACM 31(5), 1988: scaled speed-up = N + (1 − N)·s, with s the serial share."""
    s = 1 - p
    assert gustafson(p, n) == n + (1 - n) * s  # type: ignore[arg-type]


@given(shares, counts)
@few
def test_a_job_that_grows_gains_at_least_as_much_as_one_that_does_not(p: Fraction, n: int) -> None:
    assert 1 <= amdahl(p, n) <= gustafson(p, n) <= n  # type: ignore[arg-type]


@given(shares, counts)
@few
def test_both_laws_are_one_law_seen_from_both_ends(p: Fraction, n: int) -> None:
    """Shi 1996: a share p of the time on n workers is a share p·n / (1 − p + p·n) of the time on one."""
    on_one = p * n / (1 - p + p * n)
    assert amdahl(on_one, n) == gustafson(p, n)  # type: ignore[arg-type]


def test_the_limits() -> None:
    assert amdahl(0.75, math.inf) == 4
    assert amdahl(0, 100) == gustafson(0, math.inf) == 1
    assert amdahl(1, 8) == gustafson(1, 8) == 8
    assert amdahl(1, math.inf) == gustafson(0.5, math.inf) == math.inf


@pytest.mark.parametrize("law", [amdahl, gustafson])
@pytest.mark.parametrize(
    ("p", "n", "says"),
    [
        (-0.1, 2, "from 0 to 1"),
        (1.1, 2, "from 0 to 1"),
        (math.nan, 2, "from 0 to 1"),
        (0.5, 0, "from 1 on"),
        (0.5, math.nan, "from 1 on"),
    ],
)
def test_shares_and_workers_out_of_range_are_refused(law: Any, p: float, n: float, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        law(p, n)


def test_a_message_takes_latency_and_its_bytes_over_the_bandwidth() -> None:
    link = Link(latency=1e-3, bandwidth=2e9)
    assert link.seconds(0) == 1e-3
    assert link.seconds(8_000_000_000) == pytest.approx(4.001)
    assert link.seconds(1e6, messages=4) == pytest.approx(4e-3 + 5e-4)
    assert link.seconds(0, messages=0) == 0
    assert Link().seconds(1e12) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"latency": -1}, "the latency is -1"),
        ({"latency": math.inf}, "the latency is inf"),
        ({"latency": math.nan}, "the latency is nan"),
        ({"bandwidth": 0}, "the bandwidth is 0"),
        ({"bandwidth": -5}, "the bandwidth is -5"),
        ({"bandwidth": math.nan}, "the bandwidth is nan"),
    ],
)
def test_links_that_cannot_be_are_refused(arguments: dict[str, float], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Link(**arguments)


@pytest.mark.parametrize("sent", [(-1,), (math.nan,), (1, -1)])
def test_bytes_that_cannot_be_sent_are_refused(sent: tuple[Any, ...]) -> None:
    with pytest.raises(SettingError, match="cannot be sent"):
        Link().seconds(*sent)
