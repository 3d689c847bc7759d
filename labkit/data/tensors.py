"""Data in memory: a dataset made of tensors, arrays or lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from labkit.checks import generator, number
from labkit.data.dataset import Dataset
from labkit.errors import DataError

TEST_SHARE = 0.2
_TOKENS = (torch.int64, torch.int32)


@dataclass(frozen=True, eq=False, repr=False)
class Tensors(Dataset):
    """Training examples x [N, …] with targets y [N], and test examples; it travels to workers by name where it has one.

    >>> import labkit as lk
    >>> lk.data.load("digits")
    Dataset digits: 1438 training and 359 test examples of shape (64,), 10 classes
    """

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    source: Callable[[], Dataset] | None = None
    stackable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for x, y, part in ((self.x, self.y, "training"), (self.test_x, self.test_y, "test")):
            if len(x) != len(y):
                raise DataError(
                    f"{self.name} has {len(x)} {part} inputs but {len(y)} targets: give one target for each input."
                )
        if not len(self.x):
            raise DataError(f"{self.name} has no training examples: give at least one.")

    def __len__(self) -> int:
        return len(self.x)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is not None:
            return self.source, ()
        return Tensors, (self.name, self.x, self.y, self.test_x, self.test_y, self.classes)

    @property
    def shape(self) -> torch.Size:
        return self.x.shape[1:]

    def trial(self) -> tuple[Tensor, Tensor]:
        largest = 0 if self.y.is_floating_point() else int(self.y.reshape(len(self), -1).amax(1).argmax())
        twice = torch.tensor([largest, largest])
        return self.x[twice], self.y[twice]

    def hold_out(self, share: float, seed: int = 0) -> tuple[Tensors, Tensors]:
        """Cut the training examples in two, (private, public): the public part holds a seeded `share` of them.

        Both keep the test set. FedMD (arXiv:1910.03581) and FedDF (arXiv:2006.07242) train peers on the private part
        and let them exchange predictions on the public one.

        Raises SettingError for a share outside 0…1, and DataError where a part would be empty.

        >>> import labkit as lk
        >>> private, public = lk.data.load("digits").hold_out(0.25)
        >>> len(private), len(public)
        (1078, 360)
        """
        size = round(number(share, "share", most=1) * len(self))
        if not 0 < size < len(self):
            raise DataError(
                f"{self.name} has {len(self)} training examples, of which a share of {share} leaves one part empty: "
                "give a share between 0 and 1."
            )
        return _part(self, size, seed, public=False), _part(self, size, seed, public=True)


def _part(dataset: Tensors, size: int, seed: int, public: bool) -> Tensors:
    """The public part of `size` examples, or the private rest."""
    order = generator(seed).permutation(len(dataset))
    mine = torch.from_numpy(order[:size] if public else order[size:])
    return replace(
        dataset,
        name=f"{dataset.name}, {'public' if public else 'private'} part",
        x=dataset.x[mine],
        y=dataset.y[mine],
        source=partial(_part, dataset, size, seed, public) if dataset.source else None,
    )


def from_tensors(x: Any, y: Any, test_share: float = TEST_SHARE, seed: int = 0, name: str = "yours") -> Tensors:
    """Your own inputs x [N, …] and class numbers y [N], a seeded share of them held back as the test set.

    Inputs of 32 or 64 bit integers are taken for token numbers and stay integers, as an embedding wants them; all
    others (bytes of pictures among them) become float32.

    Raises DataError when x and y differ in length or nothing is left to train on.

    >>> from_tensors([[0.5], [1.5], [2.5], [3.5], [4.5]], [0, 1, 0, 1, 0])
    Dataset yours: 4 training and 1 test examples of shape (1,), 2 classes
    """
    x, y = inputs(x), targets(y)
    if len(x) != len(y):
        raise DataError(f"{name} has {len(x)} inputs but {len(y)} targets: give one target for each input.")
    order = torch.as_tensor(np.random.default_rng(seed).permutation(len(x)))
    held_back = round(test_share * len(x))
    test, train = order[:held_back], order[held_back:]
    return Tensors(name, x[train], y[train], x[test], y[test], classes_of(y))


def inputs(x: Any) -> Tensor:
    """Inputs as a tensor: token numbers stay integers, all else becomes float32."""
    given = torch.as_tensor(x)
    return given.to(torch.int64 if given.dtype in _TOKENS else torch.float32)


def targets(y: Any) -> Tensor:
    """Class numbers as a tensor."""
    return torch.as_tensor(y, dtype=torch.int64)


def classes_of(y: Tensor) -> int:
    """How many classes these numbers tell of."""
    return int(y.max()) + 1 if y.numel() else 0


# -- The tables inside scikit-learn's wheel: measurements as numbers, and a class for each row.


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
