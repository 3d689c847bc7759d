"""Epochs end when every example was dealt exactly so often, whatever the shard, the batch and the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from labkit.data.batches import Epochs
from labkit.errors import SettingError
from tests.examples import many

SIZES = {"n": st.integers(1, 200), "size": st.integers(1, 70), "epochs": st.integers(1, 4), "seed": st.integers(0, 9)}


@many
@given(**SIZES)
def test_every_example_is_dealt_exactly_epochs_times(n, size, epochs, seed):
    shard = np.random.default_rng(seed).permutation(1000)[:n]
    dealt = list(Epochs(shard, size, seed, peer=1, epochs=epochs))
    counts = np.bincount(np.concatenate(dealt), minlength=1000)
    assert (counts[shard] == epochs).all() and counts.sum() == n * epochs
    assert [len(batch) for batch in dealt] == ([size] * (n // size) + [n % size] * (n % size > 0)) * epochs


@many
@given(**SIZES)
def test_each_epoch_goes_through_the_whole_shard_before_the_next_begins(n, size, epochs, seed):
    dealt = Epochs(range(n), size, seed, peer=0, epochs=epochs)
    for epoch in range(epochs):
        assert dealt.epoch == epoch
        assert sorted(np.concatenate([next(dealt) for _ in range(dealt.per_epoch)])) == list(range(n))
    assert list(dealt) == []


@many
@given(**SIZES, start=st.integers(0, 60))
def test_the_same_seed_deals_the_same_batches_from_any_start(n, size, epochs, seed, start):
    whole = list(Epochs(range(n), size, seed, peer=2, epochs=epochs))
    late = list(Epochs(range(n), size, seed, peer=2, epochs=epochs, start=start))
    assert len(late) == max(0, len(whole) - start)
    assert all(np.array_equal(a, b) for a, b in zip(whole[start:], late, strict=True))


def test_peers_seeds_and_epochs_have_orders_of_their_own():
    orders = {
        tuple(batch.tolist())
        for seed in (0, 1)
        for peer in (0, 1)
        for batch in Epochs(range(50), 50, seed, peer, epochs=2)
    }
    assert len(orders) == 8


@pytest.mark.parametrize(
    ("numbers", "says"), [(dict(epochs=0), "epochs is 0"), (dict(batch_size=0), "batch_size is 0")]
)
def test_numbers_out_of_range_are_refused(numbers, says):
    with pytest.raises(SettingError, match=says):
        Epochs(range(8), **{"batch_size": 4, "seed": 0, "peer": 0, "epochs": 1, **numbers})
