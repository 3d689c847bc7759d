"""Robust means: worked numbers, and what bad peers can and cannot do to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from labkit.errors import ExchangeError, SettingError
from labkit.exchange import CoordinateMedian, Krum, Mean, RobustMean, TrimmedMean
from tests.examples import few

RULES = [CoordinateMedian(), TrimmedMean(2), Krum(2), Krum(2, keep=5)]
BAD = [1e30, -1e30, torch.inf, -torch.inf, torch.nan]


def honest(peers=8, size=20):
    """Vectors around (1, …, 1)."""
    return 1 + 0.1 * torch.randn(peers, size, generator=torch.Generator().manual_seed(peers))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (CoordinateMedian(), [3.0, 0.0]),
        (TrimmedMean(0), [22.1, 0.0]),
        (TrimmedMean(1), [9.5 / 3, 0.0]),
        (TrimmedMean(2), [3.0, 0.0]),
        (Krum(1), [3.0, 0.0]),  # scores over the two nearest of five: 6.25, 2.5, 1.25, 3.25 and more
        (Krum(1, keep=3), [9.5 / 3, 0.0]),
    ],
    ids=repr,
)
def test_rules_on_worked_numbers(rule, expected):
    x = torch.tensor([[1.0, 0.0], [2.5, 0.0], [3.0, 0.0], [4.0, 0.0], [100.0, 0.0]])
    assert rule.combine(x).tolist() == pytest.approx(expected)


def test_the_median_of_an_even_number_is_the_mean_of_the_two_in_the_middle():
    assert CoordinateMedian().combine(torch.tensor([[1.0], [9.0], [2.0], [4.0]])).item() == 3.0


@given(peers=st.integers(1, 9), size=st.integers(1, 9), seed=st.integers(0, 99))
@few
def test_a_mean_trimmed_of_nothing_is_the_mean(peers, size, seed):
    x = torch.randn(peers, size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(RobustMean(x, TrimmedMean(0)).stacked(), Mean(x).stacked())


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_two_bad_peers_of_ten_move_the_result_no_further_than_the_honest_lie_apart(rule, bad):
    x = torch.cat([honest(), torch.full((2, 20), bad)])
    result = rule.combine(x)
    assert (result >= honest().min(0).values).all() and (result <= honest().max(0).values).all()
    assert not (Mean(x).stacked() - 1).abs().max() < 1e3  # the mean goes wherever they like


@pytest.mark.parametrize("rule", [TrimmedMean(1), Krum(1)], ids=repr)
def test_one_bad_peer_more_than_a_rule_bears_breaks_it(rule):
    bad = torch.full((5, 20), 1e6)
    assert (rule.combine(torch.cat([honest(), bad[:1]])) - 1).abs().max() < 0.5
    assert (rule.combine(torch.cat([honest(3), bad])) - 1).abs().max() > 1e3


@given(order=st.permutations(range(8)))
@few
def test_the_order_of_the_peers_does_not_matter(order):
    for rule in RULES:
        torch.testing.assert_close(rule.combine(honest()[list(order)]), rule.combine(honest()))


def test_krum_keeps_vectors_that_were_sent():
    x = honest()
    assert any(torch.equal(Krum(2).combine(x), row) for row in x)
    assert len(set(Krum(2, keep=5).chosen(x).tolist())) == 5


@pytest.mark.parametrize(
    ("rule", "least"), [(TrimmedMean(2), 5), (Krum(2), 7), (Krum(0, keep=9), 9), (CoordinateMedian(), 1)], ids=repr
)
def test_fewer_peers_than_a_rule_bears_are_refused(rule, least):
    RobustMean(torch.zeros(least, 3), rule).stacked()
    if least > 1:
        with pytest.raises(
            ExchangeError, match=rf"good for {least} peers or more, and {least - 1} take part: let more"
        ):
            RobustMean(torch.zeros(least - 1, 3), rule).stacked()


@pytest.mark.parametrize(
    "made", [lambda: TrimmedMean(-1), lambda: Krum(-1), lambda: TrimmedMean(1.5), lambda: Krum(True)]
)
def test_a_count_that_is_none_is_refused(made):
    with pytest.raises(SettingError, match=r"(trim|bad) is .*at least 0"):
        made()


def test_krum_that_keeps_nothing_is_refused():
    with pytest.raises(SettingError, match="keep is 0; give at least 1"):
        Krum(1, keep=0)
