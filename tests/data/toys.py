"""Small datasets whose labels a test can choose."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from labkit.data import Tensors


def labelled(labels: Sequence[int], classes: int | None = None) -> Tensors:
    """A dataset of the given labels, with examples that say nothing."""
    y = torch.tensor(labels, dtype=torch.int64)
    return Tensors("toy", torch.zeros(len(y), 1), y, torch.zeros(1, 1), y[:1], classes or int(y.max()) + 1)
