"""Datasets are real, seeded and complete."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import sklearn.datasets
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


@pytest.mark.parametrize(
    ("name", "rows", "columns", "classes"),
    [
        ("breast_cancer", 569, 30, 2),
        ("wine", 178, 13, 3),
        ("iris", 150, 4, 3),
    ],
)
def test_tables_are_whole_and_standardised_on_the_training_rows_alone(name, rows, columns, classes):
    table = load(name)
    assert len(table) + len(table.test_x) == rows
    assert table.x.shape[1:] == (columns,) and table.classes == classes == len(table.y.unique())
    assert table.x.mean(0).abs().max() < 1e-5
    assert (table.x.std(0) - 1).abs().max() < 1e-5
    assert table.test_x.mean(0).abs().max() > 1e-3  # they had no say
    raw = torch.tensor(getattr(sklearn.datasets, f"load_{name}")().data)
    ours = torch.cat([table.x, table.test_x]).double()
    assert torch.allclose(_columns(ours), _columns(raw), atol=1e-4)


def _columns(x: torch.Tensor) -> torch.Tensor:
    """Each column's values in ascending order, whatever its scale."""
    return ((x - x.mean(0)) / x.std(0)).sort(0).values


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine", "iris", "characters"])
def test_what_is_there_offline_is_loaded_once_and_travels_by_name(name):
    made = load(name)
    assert load(name) is made and load(name, "a folder changes nothing") is made
    sent = pickle.dumps(made)
    assert len(sent) < 1000
    assert pickle.loads(sent) is made


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_token_numbers_stay_whole_numbers(kind):
    own = from_tensors(torch.tensor([[1, 2], [3, 4]] * 5, dtype=kind), [0, 1] * 5)
    assert own.x.dtype == own.test_x.dtype == torch.int64
    assert torch.nn.Embedding(5, 3)(own.x).shape == (8, 2, 3)


@pytest.mark.parametrize("kind", [np.uint8, np.float64, np.float16, bool])
def test_all_other_inputs_become_float32(kind):
    own = from_tensors(np.ones((5, 2), kind), [0, 1, 0, 1, 0])
    assert own.x.dtype == torch.float32 and own.x.unique().tolist() == [1.0]


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
        (lambda: load("mnist-ish"), "choose one of digits, .*, cifar10"),
        (lambda: from_tensors(torch.rand(3, 2), [0, 1]), "3 inputs but 2 targets"),
        (lambda: from_tensors(torch.rand(0, 2), []), "no training examples"),
        (lambda: lk.data.load("digits").shards(5000), "at most 1438"),
    ],
)
def test_bad_data_are_refused_in_one_sentence(call, says):
    with pytest.raises(DataError, match=says):
        call()
