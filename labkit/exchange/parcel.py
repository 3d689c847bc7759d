"""Parcels: a tree as bytes, to send to one who knows its names and shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit import tree
from labkit.errors import ExchangeError
from labkit.tree import Tree


def wrapped(value: Tree) -> bytes:
    """The numbers of a tree, leaf after leaf, as they lie in memory."""
    return b"".join(_bytes(leaf) for leaf in tree.leaves(value))


def unwrapped(parcel: bytes, like: Tree) -> Tree:
    """The stacked trees [K, …] in a parcel, each of the names, shapes and types of `like`, which is not stacked.

    Raises ExchangeError for a parcel that does not hold a whole number of them.

    >>> unwrapped(wrapped(torch.ones(3, 2)), like=torch.zeros(2)).shape
    torch.Size([3, 2])
    """
    size = tree.nbytes(like)
    if not size or not parcel or len(parcel) % size:
        raise ExchangeError(
            f"A peer sends {len(parcel)} bytes where a model of {size} is kept: give all peers the same model."
        )
    rows, at = len(parcel) // size, 0
    held = torch.frombuffer(bytearray(parcel), dtype=torch.uint8)

    def cut(leaf: Tensor) -> Tensor:
        nonlocal at
        end = at + rows * leaf.numel() * leaf.element_size()
        piece, at = held[at:end], end
        return piece.clone().view(leaf.dtype).reshape(rows, *leaf.shape)

    return tree.map(cut, like)


def _bytes(leaf: Tensor) -> bytes:
    return leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
