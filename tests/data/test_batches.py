"""Batches follow from the seed alone, from any position on, however small the shard."""

from __future__ import annotations

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from labkit.data import batches
from labkit.errors import DataError, SettingError
from tests.examples import few


def _epoch(n: int, seed: int, peer: int, epoch: int) -> np.ndarray:
    """What an epoch's order is defined to be, for a shard of at least one batch."""
    return np.random.default_rng([seed, peer, epoch]).permutation(n)


def test_an_epoch_deals_every_example_once_and_the_next_in_another_order():
    dealt = batches(range(10, 22), 4, seed=0, peer=0)
    first, second = (np.concatenate(list(islice(dealt, 3))) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(10, 22))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("n", "size"), [(10, 4), (16, 16), (33, 16), (5, 1), (127, 32)])
def test_an_epoch_of_a_small_shard_deals_none_twice_and_leaves_out_its_incomplete_last_batch(n, size):
    whole = n // size
    dealt = batches(range(n), size, seed=2, peer=3)
    epochs = [np.concatenate(list(islice(dealt, whole))) for _ in range(300)]
    assert all(len(set(epoch.tolist())) == whole * size for epoch in epochs)
    assert set(np.concatenate(epochs).tolist()) == set(range(n))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1 or n == 1


@pytest.mark.parametrize(("n", "size", "seed"), [(130, 4, 0), (160, 160, 1), (330, 16, 2), (128, 1, 2**40)])
def test_an_epoch_is_the_permutation_its_key_stands_for_without_its_incomplete_last_batch(n, size, seed):
    whole = n // size
    dealt = batches(range(n), size, seed, peer=3)
    assert dealt.per_epoch == whole
    for epoch in range(70):
        assert dealt.epoch == epoch
        got = np.concatenate(list(islice(dealt, whole)))
        assert np.array_equal(got, _epoch(n, seed, 3, epoch)[: whole * size])


@pytest.mark.parametrize(("n", "size"), [(1, 1), (1, 3000), (3, 7), (14, 16), (600, 1024)])
def test_a_shard_smaller_than_a_batch_goes_round_and_round(n, size):
    dealt = batches(range(n), size, seed=0, peer=0)
    got = list(islice(dealt, 200))
    assert all(len(batch) == size for batch in got)
    assert dealt.per_epoch == 1 and dealt.epoch == 200
    flat = np.concatenate(got)
    rounds = flat[: len(flat) // n * n].reshape(-1, n)  # every n in a row are one permutation
    assert np.array_equal(np.sort(rounds, axis=1), np.tile(np.arange(n), (len(rounds), 1)))
    assert np.ptp(np.bincount(flat, minlength=n)) <= 1


def test_the_rounds_of_a_small_shard_differ():
    rounds = np.concatenate(list(islice(batches(range(14), 16, seed=0, peer=0), 140))).reshape(-1, 14)
    assert len(np.unique(rounds, axis=0)) == len(rounds)


@few
@given(n=st.integers(1, 40), size=st.integers(1, 40), start=st.integers(0, 200), seed=st.integers(0, 5))
def test_a_stream_may_begin_anywhere(n, size, start, seed):
    whole, late = batches(range(n), size, seed, peer=1), batches(range(n), size, seed, peer=1, start=start)
    for _ in range(start):
        next(whole)
    assert late.epoch == whole.epoch
    for _ in range(90):
        assert np.array_equal(next(late), next(whole))


def test_to_begin_late_deals_nothing_of_what_comes_before():
    # Dealing so many batches would take years.
    assert len(next(batches(range(100), 10, seed=0, peer=0, start=10**15))) == 10


def test_batches_are_indices_of_the_shard():
    shard = np.array([5, 900, 77])
    batch = next(batches(shard, 8, seed=0, peer=0))
    assert batch.dtype == np.int64 and set(batch.tolist()) == {5, 77, 900}


def test_what_was_dealt_stays_as_it_was():
    dealt = batches(range(6), 4, seed=0, peer=0)
    kept = [(batch, batch.copy()) for batch in islice(dealt, 300)]
    assert all(np.array_equal(batch, copy) for batch, copy in kept)
    assert any(not np.array_equal(a, b) for (a, _), (b, _) in pairwise(kept))


def test_peers_and_seeds_have_streams_of_their_own():
    keys = [(seed, peer) for seed in (0, 1) for peer in (0, 1)]
    for n in (100, 20):
        assert len({tuple(next(batches(range(n), 50, seed, peer)).tolist()) for seed, peer in keys}) == 4


def test_a_peer_without_examples_is_refused():
    with pytest.raises(DataError, match="Peer 7 has no training examples: take fewer peers"):
        batches([], 4, seed=0, peer=7)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        (dict(batch_size=0), "batch_size is 0"),
        (dict(batch_size=1.5), "batch_size is 1.5"),
        (dict(start=-1), "start is -1"),
        (dict(seed=-1), "seed is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, says):
    with pytest.raises(SettingError, match=says):
        batches(range(8), **{"batch_size": 4, "seed": 0, "peer": 0, **numbers})


@pytest.mark.parametrize(("n", "size"), [(14, 16), (16, 16), (50, 16), (200, 16)])
def test_batches_taken_together_are_those_taken_one_by_one(n, size):
    together, single = (batches(range(n), size, seed=1, peer=2) for _ in range(2))
    for count in (1, 3, 10, 70):
        assert np.array_equal(together.take(count), np.stack([next(single) for _ in range(count)]))
        assert together.dealt == single.dealt
