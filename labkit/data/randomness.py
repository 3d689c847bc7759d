"""Randomness: what a dataset draws at random as it loads examples follows from a key, wherever that happens."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator

_States = tuple[Any, np.random.BitGenerator, torch.Tensor]


class Randomness:
    """A context in which Python's, numpy's and torch's random numbers follow from `key`, and go on from exit to entry.

    Outside of it they are as they would have been. So a random crop is the same in every engine, in the process that
    trains or in one that loads ahead, and after a checkpoint.

    >>> import random
    >>> with Randomness(3, 1):
    ...     first = random.random()
    >>> with Randomness(3, 1):
    ...     first == random.random()
    True
    """

    def __init__(self, *key: int) -> None:
        self._key = key
        self._inside: _States | None = None

    def __enter__(self) -> Randomness:
        self._outside = _states()
        if self._inside is None:
            seeds = np.random.SeedSequence(self._key)
            python, torchs = seeds.generate_state(2)
            random.seed(int(python))
            set_bit_generator(np.random.MT19937(seeds))
            torch.default_generator.manual_seed(int(torchs))
        else:
            _restore(self._inside)
        return self

    def __exit__(self, *_: object) -> None:
        self._inside = _states()
        _restore(self._outside)


def _states() -> _States:
    return random.getstate(), get_bit_generator(), torch.get_rng_state()  # copying numpy's takes longer


def _restore(states: _States) -> None:
    random.setstate(states[0])
    set_bit_generator(states[1])
    torch.set_rng_state(states[2])
