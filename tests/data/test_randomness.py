"""What a dataset draws follows from its key and is nobody else's."""

from __future__ import annotations

import random

import numpy as np
import torch

from labkit.data.randomness import Randomness


def drawn():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_same_key_draws_the_same_numbers_of_all_three_kinds():
    with Randomness(1, 2):
        first = drawn()
    with Randomness(1, 2):
        assert drawn() == first
    with Randomness(1, 3):
        assert all(a != b for a, b in zip(drawn(), first, strict=True))


def test_entered_again_it_goes_on():
    with Randomness(4):
        both = drawn(), drawn()
    again = Randomness(4)
    with again:
        one = drawn()
    drawn()
    with again:
        assert (one, drawn()) == both


def test_outside_nothing_has_happened():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = drawn(), drawn()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    first = drawn()
    with Randomness(5):
        np.random.seed(7)
        drawn()
    assert (first, drawn()) == before
