"""Datasets are real, seeded and complete; batches follow from the seed alone."""

from __future__ import annotations

import pickle
from itertools import islice

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.data import batches, from_tensors, load
from labkit.errors import DataError


def test_digits_are_the_whole_real_data_set():
    digits = load("digits")
    assert len(digits) + len(digits.test_x) == 1797 and digits.classes == 10
    assert digits.x.min() == 0 and digits.x.max() == 1
    assert load("digits") is digits


def test_training_and_test_examples_do_not_overlap():
    together = torch.cat([load("digits").x, load("digits").test_x])
    assert len(torch.unique(together, dim=0)) == len(together)


def test_a_dataset_with_a_name_travels_as_its_name():
    digits = load("digits")
    assert len(pickle.dumps(digits)) < 1000
    assert torch.equal(pickle.loads(pickle.dumps(digits)).x, digits.x)


def test_a_dataset_of_your_own_travels_whole():
    own = from_tensors(torch.rand(20, 3), torch.arange(20) % 2)
    again = pickle.loads(pickle.dumps(own))
    assert torch.equal(again.x, own.x) and torch.equal(again.test_y, own.test_y)


@pytest.mark.parametrize("peers", [1, 3, 10])
def test_iid_shards_are_disjoint_complete_and_even(peers):
    shards = load("digits").shards(peers, seed=1)
    assert shards.check()
    assert max(shards.sizes) - min(shards.sizes) <= 1


def test_the_seed_decides_the_shards():
    first, again, other = (load("digits").shards(4, seed=seed) for seed in (1, 1, 2))
    assert first == again and first != other


def test_an_epoch_deals_every_example_once_and_the_next_in_another_order():
    dealt = batches(range(10, 22), 4, seed=0, peer=0)
    first, second = (np.concatenate(list(islice(dealt, 3))) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(10, 22))
    assert not np.array_equal(first, second)


def test_an_incomplete_last_batch_is_dropped():
    assert all(len(batch) == 4 for batch in islice(batches(range(10), 4, seed=0, peer=0), 7))


def test_peers_and_seeds_have_streams_of_their_own():
    streams = {
        (seed, peer): tuple(next(batches(range(100), 50, seed, peer)).tolist()) for seed in (0, 1) for peer in (0, 1)
    }
    assert len(set(streams.values())) == 4


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: load("mnist-ish"), "choose one of digits"),
        (lambda: from_tensors(torch.rand(3, 2), [0, 1]), "3 inputs but 2 targets"),
        (lambda: from_tensors(torch.rand(0, 2), []), "no training examples"),
        (lambda: lk.data.load("digits").shards(5000), "at most 1438"),
    ],
)
def test_bad_data_are_refused_in_one_sentence(call, says):
    with pytest.raises(DataError, match=says):
        call()
