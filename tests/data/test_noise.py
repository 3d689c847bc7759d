"""Label noise is exact, seeded, of the kind it is called, and spares the test set."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from labkit.data import from_tensors, load, noisy
from labkit.errors import DataError, SettingError
from tests.data.toys import labelled
from tests.examples import few


@few
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0, 1),
    kind=st.sampled_from(["symmetric", "pair"]),
    seed=st.integers(0, 9),
)
def test_exactly_the_asked_share_of_training_labels_is_wrong(labels, share, kind, seed):
    clean = labelled(labels, classes=5)
    dirty = noisy(clean, share, kind, seed)
    assert int((dirty.y != clean.y).sum()) == round(share * len(labels))
    assert dirty.y.min() >= 0 and dirty.y.max() < 5
    assert torch.equal(clean.y, torch.tensor(labels))  # the original is left alone


def test_inputs_and_the_test_set_stay_right():
    clean, dirty = load("digits"), noisy(load("digits"), 0.9)
    assert torch.equal(dirty.test_y, clean.test_y)
    assert dirty.x is clean.x and dirty.test_x is clean.test_x


def test_symmetric_noise_takes_a_class_for_any_other_alike():
    clean = labelled([c for c in range(4) for _ in range(3000)])
    dirty = noisy(clean, 0.6)
    q = np.zeros((4, 4))
    np.add.at(q, (clean.y.numpy(), dirty.y.numpy()), 1 / 3000)
    assert q == pytest.approx(np.where(np.eye(4), 0.4, 0.2), abs=0.04)


def test_pair_noise_takes_a_class_for_the_next_and_the_last_for_the_first():
    clean = labelled([0, 1, 2] * 10)
    dirty = noisy(clean, 1.0, "pair")
    assert torch.equal(dirty.y, (clean.y + 1) % 3)


def test_the_seed_decides_which_labels_are_wrong():
    first, again, other = (noisy(load("digits"), 0.5, seed=seed).y for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_a_noisy_dataset_travels_by_name_where_its_source_does(kind):
    dirty = noisy(load("digits"), 0.3, kind, seed=4)
    sent = pickle.dumps(dirty)
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent).y, dirty.y)
    assert repr(pickle.loads(sent)) == repr(dirty)


def test_a_noisy_dataset_of_your_own_travels_whole():
    dirty = noisy(from_tensors(torch.rand(20, 3), torch.arange(20) % 2), 0.5)
    assert torch.equal(pickle.loads(pickle.dumps(dirty)).y, dirty.y)


def test_noise_may_be_held_out_and_what_is_held_out_may_be_noisy():
    private, _ = noisy(load("digits"), 0.5).hold_out(0.2)
    again = pickle.loads(pickle.dumps(noisy(private, 0.1, "pair")))
    assert "50% symmetric" in repr(again) and "10% pair" in repr(again)


@pytest.mark.parametrize(
    ("error", "call", "says"),
    [
        (SettingError, lambda: noisy(load("digits"), 1.5), "share is 1.5; give a number from 0 to 1"),
        (SettingError, lambda: noisy(load("digits"), float("nan")), "share is nan"),
        (SettingError, lambda: noisy(load("digits"), True), "share is True"),
        (SettingError, lambda: noisy(load("digits"), 0.5, "odd"), "choose one of symmetric, pair"),
        (SettingError, lambda: noisy(load("digits"), 0.5, seed=-1), "seed is -1"),
        (DataError, lambda: noisy(labelled([0, 0]), 0.5), "one class number out of two or more"),
    ],
)
def test_bad_noise_is_refused_in_one_sentence(error, call, says):
    with pytest.raises(error, match=says):
        call()
