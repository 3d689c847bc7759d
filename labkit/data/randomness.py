"""Randomness: what a dataset draws at random as it loads examples follows from a key, wherever that happens."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

_States = tuple[Any, Any, torch.Tensor]


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
            python, numpys, torchs = np.random.SeedSequence(self._key).generate_state(3)
            random.seed(int(python))
            np.random.seed(int(numpys))
            torch.default_generator.manual_seed(int(torchs))
        else:
            _restore(self._inside)
        return self

    def __exit__(self, *_: object) -> None:
        self._inside = _states()
        _restore(self._outside)


def _states() -> _States:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore(states: _States) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
