"""Sources: real data sets by name, those first that are there offline, inside scikit-learn and Python itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from labkit.checks import Integers
from labkit.data.images import CIFAR10, FASHION_MNIST, MNIST, cifar, mnist
from labkit.data.tensors import TEST_SHARE, Tensors, from_tensors
from labkit.errors import DataError

ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789.,:;'\"()[]<>=+-*_|?"  # the last stands for every other character
WINDOW = 32
_MOST = 12_500  # windows, so that an epoch stays a matter of seconds and the size the same in every Python


def digits() -> Tensors:
    """1,797 handwritten digits of 8×8 pixels, scaled to 0…1; a fixed fifth is the test set (see datasets/digits.md)."""
    table = np.loadtxt(_file("digits.csv.gz"), delimiter=",", dtype=np.float32)
    return from_tensors(table[:, :-1] / 16.0, table[:, -1].astype(np.int64), name="digits")


def _file(name: str) -> Path:
    """A file of scikit-learn's, read without importing it, which takes a worker that has just started a second."""
    package = find_spec("sklearn")
    assert package is not None
    return Path(next(iter(package.submodule_search_locations or ()))) / "datasets" / "data" / name


def table(name: str) -> Tensors:
    """One of scikit-learn's small tables, a fixed fifth of its rows as the test set (see datasets/NAME.md).

    Every column is standardised, (x − μ)/σ, by the mean and deviation of the training rows alone.
    """
    import sklearn.datasets

    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    made = from_tensors(x, y, name=name)
    deviation, mean = torch.std_mean(made.x, dim=0)
    return replace(made, x=(made.x - mean) / deviation, test_x=(made.test_x - mean) / deviation)


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


# Inside scikit-learn and Python; scikit-learn's diabetes set is not among them, since its targets are no classes, and
# a dataset here is something that a model gets right or wrong.
_OFFLINE: dict[str, Callable[[], Tensors]] = {
    "digits": digits,
    "breast_cancer": partial(table, "breast_cancer"),
    "wine": partial(table, "wine"),
    "iris": partial(table, "iris"),
    "characters": characters,
}
_DOWNLOADED: dict[str, Callable[[Path | None], Tensors]] = {
    "mnist": partial(mnist, MNIST),
    "fashion_mnist": partial(mnist, FASHION_MNIST),
    "cifar10": partial(cifar, CIFAR10),
}
SOURCES = (*_OFFLINE, *_DOWNLOADED)


def load(name: str, folder: str | Path | None = None) -> Tensors:
    """A data set by name, each described in datasets/NAME.md; it is loaded once in a process.

    What scikit-learn and Python bring along needs no network; mnist, fashion_mnist and cifar10 are downloaded once, to
    `folder` or the user's cache directory, and checked against their SHA-256.

    Raises DataError for a name that is not one of `SOURCES`, and for files that can be neither found nor downloaded.
    """
    if name not in SOURCES:
        raise DataError(f"There is no data set {name!r}: choose one of {', '.join(SOURCES)}.")
    return _loaded(name, None if folder is None or name in _OFFLINE else Path(folder))


@cache
def _loaded(name: str, folder: Path | None) -> Tensors:
    made = _OFFLINE[name]() if name in _OFFLINE else _DOWNLOADED[name](folder)
    return replace(made, source=partial(load, name, folder))
