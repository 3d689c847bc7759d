"""Compressors: what they keep, how small they are, and the error they promise not to exceed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st

from labkit.errors import ExchangeError, SettingError
from labkit.exchange import QSGD, Half, RandomK, Sign, TopK
from labkit.exchange.compression import nbytes, pack, unpack
from tests.examples import few, many

CONTRACTIONS = [TopK(0.1), TopK(1.0), Sign(), Half("fp16"), Half("bf16")]
EVERY = [*CONTRACTIONS, RandomK(0.1), RandomK(0.1, unbiased=True), QSGD(1), QSGD(7), QSGD(127)]
# In fp16's normal range, squares within single precision; zeros among them.
numbers = st.one_of(st.just(0.0), st.floats(2**-10, 2**10, width=32), st.floats(-(2**10), -(2**-10), width=32))
vectors = st.lists(numbers, min_size=10, max_size=70).map(torch.tensor)


def roundtrip(compressor, x, key=0, ids=None):
    return compressor.decode(compressor.encode(x, key, ids), x.shape[-1], key)


def gaussian(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("compressor", CONTRACTIONS, ids=repr)
@given(x=vectors)
@many
def test_no_vector_loses_more_than_the_contraction_allows(compressor, x):
    lost = float((x - roundtrip(compressor, x)).double().square().sum())
    allowed = (1 - compressor.contraction(len(x))) * float(x.double().square().sum())
    assert lost <= allowed * (1 + 1e-4) + 1e-12


def tries(compressor, x, times=4000):
    """C(x) many times, with other random numbers each time."""
    if compressor.linear:  # peers draw alike, so rounds differ
        return torch.stack([roundtrip(compressor, x, key) for key in range(times)])
    return roundtrip(compressor, x.expand(times, -1), 0, torch.arange(times))


@pytest.mark.parametrize(
    "compressor", [RandomK(0.1), RandomK(0.7, unbiased=True), QSGD(3), QSGD(7), QSGD(127)], ids=repr
)
def test_random_compressors_lose_no_more_than_their_contraction_on_average(compressor):
    x = gaussian(50) ** 3
    lost = (tries(compressor, x) - x).square().sum(1)
    allowed = (1 - compressor.contraction(50)) * float(x.square().sum())
    assert lost.mean() <= allowed + 4 * lost.std() / math.sqrt(len(lost))


def test_random_places_lose_the_share_that_is_left_out():
    x = gaussian(50)
    lost = (tries(RandomK(0.2), x) - x).square().sum(1)
    assert lost.mean().item() == pytest.approx(0.8 * float(x.square().sum()), rel=0.02)


@pytest.mark.parametrize("compressor", [RandomK(0.3, unbiased=True), QSGD(1), QSGD(7), QSGD(127)], ids=repr)
def test_unbiased_compressors_are_right_on_average(compressor):
    x = gaussian(30)
    made = tries(compressor, x)
    assert ((made.mean(0) - x).abs() <= 5 * made.std(0) / math.sqrt(len(made)) + 1e-7).all()


@given(x=vectors)
@few
def test_top_k_keeps_the_k_largest_and_nothing_else(x):
    kept = roundtrip(TopK(0.3), x)
    count = round(0.3 * len(x))
    assert (kept != 0).sum() <= count
    assert sorted(kept.abs().tolist())[-count:] == sorted(x.abs().tolist())[-count:]
    assert ((kept == x) | (kept == 0)).all()


def test_top_k_takes_the_first_of_numbers_that_tie():
    x = torch.tensor([[1.0, -2.0, 2.0, 2.0, -1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0, -3.0]])
    expected = [[0.0, -2.0, 2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, -3.0]]
    assert roundtrip(TopK(0.5), x).tolist() == expected
    many = torch.full((2000,), -1.0)
    assert roundtrip(TopK(0.25), many).tolist() == [-1.0] * 500 + [0.0] * 1500


@pytest.mark.parametrize("compressor", [TopK(1.0), RandomK(1.0), RandomK(1.0, unbiased=True)], ids=repr)
@given(x=vectors)
@few
def test_all_of_the_numbers_are_the_vector_itself(compressor, x):
    assert torch.equal(roundtrip(compressor, x), x)


def test_sign_keeps_the_signs_and_the_mean_magnitude():
    assert roundtrip(Sign(), torch.tensor([3.0, -1.0, 0.0])).tolist() == pytest.approx([4 / 3, -4 / 3, 4 / 3])


def test_qsgd_sends_whole_levels_of_the_norm():
    x = gaussian(200)
    levels = roundtrip(QSGD(7), x) / x.norm() * 7
    torch.testing.assert_close(levels, levels.round(), atol=1e-5, rtol=0)
    assert (levels - x / x.norm() * 7).abs().max() < 1  # one level up or down


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
@pytest.mark.parametrize("size", [10, 37, 4810])
def test_the_bytes_are_those_of_the_packed_tensors(compressor, size):
    packed = compressor.encode(gaussian(size))
    assert sum(leaf.nbytes for leaf in packed.values()) == compressor.nbytes(size)
    assert compressor.ratio(size) == compressor.nbytes(size) / (4 * size)


@pytest.mark.parametrize(
    ("compressor", "ratio"),
    [
        (TopK(0.01), 0.02),
        (RandomK(0.01), 0.01),
        (Sign(), 1 / 32),
        (QSGD(1), 1 / 16),
        (QSGD(7), 1 / 8),
        (QSGD(127), 1 / 4),
        (Half("fp16"), 1 / 2),
        (Half("bf16"), 1 / 2),
    ],
    ids=repr,
)
def test_the_ratio_is_the_stated_one_but_for_one_number_a_vector(compressor, ratio):
    assert ratio <= compressor.ratio(10_000) <= ratio + 2 / 10_000


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_stacked_vectors_are_compressed_as_each_by_itself(compressor):
    x, ids = gaussian(4, 37), torch.tensor([7, 0, 3, 12])
    together = roundtrip(compressor, x, 3, ids)
    for row, peer, expected in zip(x, ids, together, strict=True):
        assert torch.equal(roundtrip(compressor, row, 3, peer), expected)


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_zeros_stay_zeros(compressor):
    assert torch.equal(roundtrip(compressor, torch.zeros(3, 20)), torch.zeros(3, 20))


def test_peers_and_rounds_draw_different_levels_but_the_same_places():
    x = gaussian(100).expand(2, 100)
    one, other = roundtrip(QSGD(1), x, 1, torch.tensor([0, 1]))
    assert not torch.equal(one, other)
    assert not torch.equal(roundtrip(QSGD(1), x[0], 1), roundtrip(QSGD(1), x[0], 2))
    one, other = roundtrip(RandomK(0.1), x, 1, torch.tensor([0, 1])) != 0
    assert torch.equal(one, other)
    assert not torch.equal(one, roundtrip(RandomK(0.1), x[0], 2) != 0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@given(data=st.data())
@few
def test_packed_numbers_come_out_as_they_went_in(bits, data):
    values = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=40)))
    packed = pack(values, bits)
    assert packed.dtype == torch.uint8 and packed.nbytes == nbytes(len(values), bits)
    assert unpack(packed, bits, len(values)).tolist() == values.tolist()


@pytest.mark.parametrize("kind", [TopK, RandomK])
@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(kind, share):
    with pytest.raises(SettingError, match=r"share is .*; give a number above 0 up to 1"):
        kind(share)


@pytest.mark.parametrize("kind", [TopK, RandomK])
def test_a_share_that_keeps_nothing_is_refused(kind):
    with pytest.raises(SettingError, match=r"keeps none of 100 numbers: give a share of at least 0\.01"):
        kind(0.001).encode(torch.ones(100))


@pytest.mark.parametrize("levels", [0, 128, 2.0, True])
def test_levels_that_do_not_fit_into_8_bits_are_refused(levels):
    with pytest.raises(SettingError, match=r"levels is .*; give .*1 to 127"):
        QSGD(levels)


def test_an_unknown_half_is_refused():
    with pytest.raises(SettingError, match="give 'fp16' or 'bf16'"):
        Half("fp8")


def test_numbers_beyond_fp16_are_refused_with_the_remedy():
    with pytest.raises(ExchangeError, match=r"1e\+06 does not fit into fp16: use Half\('bf16'\)"):
        Half().encode(torch.tensor([1e6]))
    assert roundtrip(Half("bf16"), torch.tensor([1e6])).item() == pytest.approx(1e6, rel=2**-8)
