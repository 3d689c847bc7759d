"""Randomness: what a dataset draws at random as it loads examples follows from a key, wherever that happens."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator

from labkit.data.thread_generator import current


class Randomness:
    """A context in which Python's, numpy's and torch's random numbers follow from `key`, and go on from exit to entry.

    Outside they are as they would have been (but for the second of two that `numpy.random.randn` draws at once). In a
    thread with generators of its own it is these that follow, and no other thread notices.
    So a random crop is the same in every engine, in the process that trains or loads ahead, and after a checkpoint.

    >>> import random
    >>> with Randomness(3, 1):
    ...     first = random.random()
    >>> with Randomness(3, 1):
    ...     first == random.random()
    True
    """

    def __init__(self, *key: int) -> None:
        self._numpys = np.random.MT19937()  # swapped in and out, as copying its state takes longer than a batch may
        self.anew(*key)

    def anew(self, *key: int) -> Randomness:
        """The same from its beginning, with another key."""
        self._key = key
        self._inside: tuple[Any, torch.Tensor] | None = None
        return self

    def __enter__(self) -> Randomness:
        self._outside = random.getstate(), torch.get_rng_state()
        self._thread = current()
        self._before = (self._thread.drawn, self._thread.watch()) if self._thread else (False, False)
        if self._thread is None:
            self._others = get_bit_generator()
            set_bit_generator(self._numpys)
        else:
            self._thread.numpy, self._threads = np.random.RandomState(self._numpys), self._thread.numpy
        if self._inside is None:
            python, numpys, torchs = np.random.SeedSequence(self._key).generate_state(3)
            random.seed(int(python))
            np.random.seed(int(numpys))
            torch.manual_seed(int(torchs))
        else:
            _restore(*self._inside)
        return self

    def __exit__(self, *_: object) -> None:
        self._inside = random.getstate(), torch.get_rng_state()
        if self._thread is None:
            set_bit_generator(self._others)
        else:
            self._thread.numpy = self._threads
        _restore(*self._outside)
        if self._thread is not None:  # what data draw does not mean that the model does
            self._thread.drawn, watches = self._before
            if watches:
                self._thread.unwatch()


def _restore(python: Any, torchs: torch.Tensor) -> None:
    random.setstate(python)
    torch.set_rng_state(torchs)
