"""Where data come from: real data sets, those first that are there offline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from labkit.data.characters import characters
from labkit.data.images import CIFAR10, FASHION_MNIST, MNIST, cifar, mnist
from labkit.data.tensors import Tensors, digits, table
from labkit.errors import DataError

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
