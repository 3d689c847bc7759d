"""A corpus of characters that every Python brings along: the help texts of the language reference."""

from __future__ import annotations

import re

import numpy as np
import torch

from labkit.checks import Integers
from labkit.data.tensors import TEST_SHARE, Tensors
from labkit.errors import DataError

ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789.,:;'\"()[]<>=+-*_|?"  # the last stands for every other character
WINDOW = 32
_MOST = 12_500  # windows, so that an epoch stays a matter of seconds and the size the same in every Python


def characters() -> Tensors:
    """Windows of 32 characters [N, 32] and the character that follows each [N] (see datasets/characters.md).

    The windows do not overlap, and those of the text's last fifth are the test set, so no test text was trained on.
    """
    codes = encode(_corpus())
    apart = max(WINDOW + 1, len(codes) // _MOST)
    starts = np.arange(0, len(codes) - WINDOW, apart)[:_MOST]
    x = torch.from_numpy(codes[starts[:, None] + np.arange(WINDOW)])
    y = torch.from_numpy(codes[starts + WINDOW])
    cut = len(y) - round(TEST_SHARE * len(y))
    return Tensors("characters", x[:cut], y[:cut], x[cut:], y[cut:], len(ALPHABET))


def encode(text: str) -> Integers:
    """The place of each character in `ALPHABET`, in lower case and with white space and ruled lines drawn together.

    >>> encode("An  Example\\n-------").tolist()
    [1, 14, 0, 5, 24, 1, 13, 16, 12, 5, 0, 51]
    >>> decode(encode("Größe: 5"))
    'gr??e: 5'
    """
    text = re.sub(r"([^\w\s])\1{2,}", r"\1", re.sub(r"\s+", " ", text.lower()))
    place = {character: code for code, character in enumerate(ALPHABET)}
    return np.array([place.get(character, len(ALPHABET) - 1) for character in text], dtype=np.int64)


def decode(codes: Integers) -> str:
    """The characters at these places of `ALPHABET`."""
    return "".join(ALPHABET[code] for code in codes)


def _corpus() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "This Python came without pydoc_data, the help texts that are the corpus: install Python's standard "
            "library in full."
        ) from error
    return "\n".join(topics[topic] for topic in sorted(topics))
