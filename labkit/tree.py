"""Tree: a small algebra of parameters; a tree is one tensor, or a dict of tensors by name.

Updates then read as arithmetic, and a message needs only one way to travel: flattened into one vector.

>>> import torch
>>> x = {"w": torch.ones(2), "b": torch.zeros(1)}
>>> size(x), nbytes(x)
(3, 12)
>>> {name: leaf.tolist() for name, leaf in map(lambda a, b: a + 2 * b, x, x).items()}
{'w': [3.0, 3.0], 'b': [0.0]}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from labkit.errors import ExchangeError

T = TypeVar("T", Tensor, dict[str, Tensor], Tensor | dict[str, Tensor])
Tree = Tensor | dict[str, Tensor]


def map(fn: Callable[..., Tensor], tree: T, *others: T) -> T:
    """Apply `fn` to each leaf, or to the leaves of the same name of several trees."""
    if isinstance(tree, Tensor):
        return fn(tree, *others)
    return {name: fn(leaf, *(other[name] for other in others)) for name, leaf in tree.items()}  # type: ignore[index]


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a tree, in order."""
    return [tree] if isinstance(tree, Tensor) else list(tree.values())


def size(tree: Tree) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.numel() for leaf in leaves(tree))


def nbytes(tree: Tree) -> int:
    """How many bytes the numbers of a tree take."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(tree))


def squares(tree: Tree, lead: int = 0) -> Tensor:
    """‖x‖², of each row of the first `lead` dimensions.

    >>> squares({"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}, lead=1)
    tensor([25.,  1.])
    """
    return torch.stack([leaf.flatten(lead).square().sum(-1) for leaf in leaves(tree)]).sum(0)


def flatten(tree: Tree, lead: int = 0) -> Tensor:
    """All leaves as one vector, keeping the first `lead` dimensions, which the leaves share."""
    return torch.cat([leaf.reshape(*leaf.shape[:lead], leaf.shape[lead:].numel()) for leaf in leaves(tree)], dim=lead)


def unflatten(flat: Tensor, like: T, lead: int = 0) -> T:
    """The inverse of `flatten`: cut `flat` into leaves of the shapes in `like`; its leading sizes may differ."""
    shapes = [leaf.shape[lead:] for leaf in leaves(like)]
    pieces = iter(torch.split(flat, [shape.numel() for shape in shapes], dim=-1))
    head: tuple[int, ...] = flat.shape[:-1]
    return map(lambda leaf: next(pieces).reshape((*head, *leaf.shape[lead:])), like)


def require_alike(trees: list[Tree]) -> None:
    """Raise ExchangeError unless all trees have the same names and shapes."""

    def form(tree: Tree) -> dict[str, tuple[int, ...]]:
        named = {"": tree} if isinstance(tree, Tensor) else tree
        return {name: tuple(leaf.shape) for name, leaf in named.items()}

    first = form(trees[0])
    for peer, tree in enumerate(trees[1:], start=1):
        other = form(tree)
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                what = f"for {name!r} " if name else ""
                remedy = (
                    "the same model, or exchange predictions instead of parameters" if name else "outputs of one shape"
                )
                raise ExchangeError(
                    f"Peers 0 and {peer} send tensors of different shapes {what}"
                    f"({first.get(name)} and {other.get(name)}): give them {remedy}."
                )
