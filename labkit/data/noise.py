"""Label noise: training labels that are wrong on purpose, while test labels stay right."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from labkit.checks import generator, number
from labkit.data.dataset import Dataset
from labkit.data.tensors import Tensors
from labkit.errors import DataError, SettingError

_KINDS = ("symmetric", "pair")


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
    if kind not in _KINDS:
        raise SettingError(f"kind={kind!r} is unknown: choose one of {', '.join(_KINDS)}.")
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
