"""Data in memory: a dataset made of tensors, arrays or lists, cut in two or with wrong labels where that is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labkit.checks import generator, number, one_of, whole
from labkit.data.conversion import class_numbers, classes_of, inputs, numbered, targets
from labkit.data.dataset import Dataset
from labkit.errors import DataError

TEST_SHARE = 0.2
_NOISE = ("symmetric", "pair")


@dataclass(frozen=True, eq=False, repr=False)
class Tensors(Dataset):
    """Training examples x [N, …] with targets y [N, …], and test examples; to workers it travels by name if it has one.

    `classes` is how many classes the targets tell of, 0 where they are real numbers, and `names` what they are called.

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
    names: tuple[str, ...] = ()
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
        return Tensors, (self.name, self.x, self.y, self.test_x, self.test_y, self.classes, None, self.names)

    def examples(self, numbers: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return self.x[torch.from_numpy(numbers)], self.y[torch.from_numpy(numbers)]

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


def from_tensors(
    x: Any, y: Any, test_share: float = TEST_SHARE, seed: int = 0, name: str = "yours", classes: int | None = None
) -> Tensors:
    """Your own inputs x [N, …] and targets y [N, …], a seeded share of them held back as the test set.

    Both may be tensors, arrays, tables such as a DataFrame, or lists. Inputs of 32 or 64 bit integers are taken for
    token numbers and stay integers, as an embedding wants them; all others (bytes of pictures among them) become
    float32. Targets keep their shape: integers are class numbers, real numbers stay real and become float32, and words
    are numbered as classes, whose `names` the dataset keeps. With `classes` the targets are so many class numbers,
    also where they were given as real numbers, 1.0 for 1.

    Raises DataError when x and y differ in length, hold NaN or what cannot be read, or nothing is left to train on, and
    SettingError for a share outside 0…1.

    >>> from_tensors([[0.5], [1.5], [2.5], [3.5], [4.5]], [0, 1, 0, 1, 0])
    Dataset yours: 4 training and 1 test examples of shape (1,), 2 classes
    >>> from_tensors([[0.5], [1.5], [2.5], [3.5], [4.5]], ["cat", "dog", "cat", "dog", "cat"]).names
    ('cat', 'dog')
    >>> from_tensors([[0.5], [1.5], [2.5], [3.5], [4.5]], [0.1, 0.3, 0.5, 0.7, 0.9]).y.dtype
    torch.float32
    """
    share, random = number(test_share, "test_share", most=1), generator(seed)
    x, (y,), names = inputs(x), *numbered(targets(y))
    if classes is not None:
        y = class_numbers(y, whole(classes, "classes"))
    if len(x) != len(y):
        raise DataError(f"{name} has {len(x)} inputs but {len(y)} targets: give one target for each input.")
    order = torch.as_tensor(random.permutation(len(x)))
    held_back = round(share * len(x))
    test, train = order[:held_back], order[held_back:]
    return Tensors(name, x[train], y[train], x[test], y[test], classes or classes_of(y), names=names)


def noisy(dataset: Dataset, share: float, kind: str = "symmetric", seed: int = 0) -> Tensors:
    """The dataset with round(share·N) of its N training labels wrong; test labels stay as they are.

    The transition matrix Q of Han et al., arXiv:1804.06872, fig. 3 and appendix A, with ε = `share`:

    - `symmetric`: Q[i, j] = ε/(C−1) for j ≠ i, any other class is as likely;
    - `pair`: Q[i, i+1] = ε, a class is taken for the next one, and the last for the first.

    Raises SettingError for a share outside 0…1 or an unknown kind, and DataError for targets without two classes.

    >>> import labkit as lk
    >>> digits = lk.data.load("digits")
    >>> half = lk.data.noisy(digits, 0.5)
    >>> half
    Dataset digits with 50% symmetric label noise: 1438 training and 359 test examples of shape (64,), 10 classes
    >>> int((half.y != digits.y).sum())
    719
    """
    share = number(share, "share", most=1)
    one_of(kind, "kind", _NOISE)
    if not isinstance(dataset, Tensors):
        raise DataError(
            f"The labels of {dataset.name} are loaded batch by batch: let the torch dataset give wrong ones itself, or "
            "load its examples as tensors with lk.data.from_tensors(x, y)."
        )
    if dataset.classes < 2 or dataset.y.dim() != 1:
        raise DataError(
            f"{dataset.name} has no label that could be taken for another: give one class number out of two or more "
            "for each example."
        )
    wrong = round(share * len(dataset))
    random = generator(seed)
    at = torch.from_numpy(random.permutation(len(dataset))[:wrong])
    away = random.integers(1, dataset.classes, size=wrong) if kind == "symmetric" else [1] * wrong
    y = dataset.y.clone()
    y[at] = (y[at] + torch.as_tensor(away, dtype=y.dtype)) % dataset.classes
    return replace(
        dataset,
        name=f"{dataset.name} with {100 * share:.4g}% {kind} label noise",
        y=y,
        source=partial(noisy, dataset, share, kind, seed) if dataset.source else None,
    )
