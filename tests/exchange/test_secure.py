"""Secure aggregation: sums that are exact, of numbers that look like noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import kstest

from labkit.errors import ExchangeError
from labkit.exchange import ModularSum
from labkit.exchange.randomness import key, normal, uniform
from labkit.exchange.secure import SCALE, from_fixed, masks, to_fixed
from tests.examples import few


@pytest.mark.parametrize("neighbours", [None, 2, 4])
@given(ids=st.lists(st.integers(0, 10**6), min_size=1, max_size=9, unique=True), size=st.integers(1, 6))
@few
def test_the_masks_of_all_who_take_part_cancel(ids, size, neighbours):
    everyone = torch.tensor(ids)
    assert (masks(everyone, everyone, 3, size, neighbours).sum(0) == 0).all()


@pytest.mark.parametrize("neighbours", [None, 4])
def test_a_peer_masks_alike_alone_and_among_others(neighbours):
    everyone = torch.tensor([9, 2, 30, 4, 11, 6, 5])
    together = masks(everyone, everyone, 7, 5, neighbours)
    assert torch.equal(together[[2, 0, 5]], masks(everyone[[2, 0, 5]], everyone, 7, 5, neighbours))
    assert torch.equal(together[3], masks(everyone[3], everyone, 7, 5, neighbours))


def test_with_neighbours_a_mask_is_shared_with_so_many_only():
    everyone = torch.arange(20)
    whole = masks(everyone, everyone, 1, 1, 4)
    # Take one peer away from the sum: as many masks as it shares are left over, spread over the others' sums.
    assert (whole != 0).all()
    assert not torch.equal(whole, masks(everyone, everyone, 1, 1, 6))


@pytest.mark.parametrize("neighbours", [None, 2])
def test_what_a_peer_sends_looks_uniform_whatever_it_hides(neighbours):
    everyone = torch.arange(5)
    for peer in everyone:
        masked = to_fixed(torch.full((20_000,), 0.5), 5) + masks(peer, everyone, 1, 20_000, neighbours)
        assert kstest(masked.double() / 2.0**64 + 0.5, "uniform").pvalue > 1e-4
        low = (masked & 0xFFFF).double() / 2**16
        assert kstest(low, "uniform").pvalue > 1e-4


def test_masks_change_from_round_to_round():
    everyone = torch.arange(3)
    assert not (masks(everyone, everyone, 1, 50) == masks(everyone, everyone, 2, 50)).any()


@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
@few
def test_fixed_point_keeps_numbers_to_its_step(values):
    x = torch.tensor(values, dtype=torch.float64)
    assert (from_fixed(to_fixed(x, 10)) - x).abs().max() <= 0.5 / SCALE


def test_a_sum_that_wraps_around_comes_out_right():
    x = torch.tensor([[2**63 - 1], [5], [-(2**63) + 1]])
    assert ModularSum(x).stacked().item() == 5
    assert [reply.item() for reply in ModularSum.lockstep([ModularSum(row) for row in x])] == [5] * 3


@pytest.mark.parametrize("value", [1e12, -1e12, torch.nan, torch.inf])
def test_numbers_beyond_the_fixed_point_are_refused(value):
    with pytest.raises(ExchangeError, match=r"does not fit into the fixed point .* from each of 10 peers: scale"):
        to_fixed(torch.tensor([0.0, value]), 10)


def test_the_largest_numbers_of_all_peers_still_add_up():
    largest = 0.999 * 2**62 / SCALE / 8
    total = to_fixed(torch.full((8,), largest, dtype=torch.float64), 8).sum()
    assert from_fixed(total).item() == pytest.approx(8 * largest)


def test_random_numbers_follow_from_their_address_alone():
    ids = torch.tensor([[4, 1], [0, 9]])
    drawn = uniform(key("test", 1), ids, 5)
    assert drawn.shape == (2, 2, 5)
    assert torch.equal(drawn[1, 1], uniform(key("test", 1), torch.tensor(9), 5))
    assert torch.equal(drawn[1, 1], uniform(key("test", 1), torch.tensor(9), 50)[:5])
    assert len({key("test", 1), key("test", 2), key("other", 1), key("test", 1, 0), key("test")}) == 5


@pytest.mark.parametrize(("draw", "law"), [(uniform, "uniform"), (normal, "norm")])
def test_random_numbers_have_their_law_and_do_not_repeat_between_peers(draw, law):
    drawn = draw(key("test"), torch.arange(4), 10_000)
    for row in drawn:
        assert kstest(row, law).pvalue > 1e-4
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.05
