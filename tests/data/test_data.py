"""Datasets are real, seeded and complete."""

from __future__ import annotations

import pickle

import pytest
import torch

import labkit as lk
from labkit.data import from_tensors, load
from labkit.errors import DataError, SettingError


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
def test_shards_are_iid_and_even_unless_said_otherwise(peers):
    shards = load("digits").shards(peers, seed=1)
    assert shards.check()
    assert max(shards.sizes) - min(shards.sizes) <= 1


def test_holding_out_cuts_the_training_examples_in_two_and_keeps_the_test_set():
    digits = load("digits")
    private, public = digits.hold_out(0.25, seed=2)
    assert len(public) == round(0.25 * len(digits))
    together = torch.cat([private.x, public.x])
    assert torch.equal(torch.unique(together, dim=0), torch.unique(digits.x, dim=0))
    assert len(together) == len(digits)
    assert private.test_x is digits.test_x and public.test_y is digits.test_y


def test_the_seed_decides_what_is_held_out():
    first, again, other = (load("digits").hold_out(0.5, seed=seed)[1].x for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_both_parts_travel_by_name():
    for part in load("digits").hold_out(0.25):
        sent = pickle.dumps(part)
        assert len(sent) < 1000
        again = pickle.loads(sent)
        assert torch.equal(again.x, part.x) and torch.equal(again.y, part.y) and again.name == part.name


@pytest.mark.parametrize(
    ("share", "error"), [(0, DataError), (1.0, DataError), (-0.1, SettingError), ("half", SettingError)]
)
def test_a_share_that_leaves_a_part_empty_or_is_none_is_refused(share, error):
    with pytest.raises(error, match=r"between 0 and 1|from 0 to 1"):
        load("digits").hold_out(share)


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
