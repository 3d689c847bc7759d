"""Inputs: a batch of several tensors that a model takes together, by name or in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node


class Inputs:
    """Several inputs [B, …] of the same examples: a model takes them as model(**inputs) by name, or model(*inputs).

    It is indexed, moved and copied like one tensor, example by example.

    >>> both = Inputs({"tokens": torch.zeros(3, 5, dtype=torch.long), "mask": torch.ones(3, 5)})
    >>> len(both[:2]), both.shape
    (2, (3, 'tokens [5]', 'mask [5]'))
    """

    requires_grad = False

    def __init__(self, parts: Mapping[str, Tensor] | tuple[Tensor, ...]) -> None:
        self.parts: dict[str, Tensor] | tuple[Tensor, ...] = parts if isinstance(parts, tuple) else dict(parts)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors, in order."""
        return list(self.parts.values() if isinstance(self.parts, dict) else self.parts)

    @property
    def args(self) -> tuple[Tensor, ...]:
        """What a model takes in order."""
        return () if isinstance(self.parts, dict) else self.parts

    @property
    def kwargs(self) -> dict[str, Tensor]:
        """What a model takes by name."""
        return self.parts if isinstance(self.parts, dict) else {}

    def map(self, fn: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with a function of each tensor."""
        if isinstance(self.parts, dict):
            return Inputs({name: fn(part) for name, part in self.parts.items()})
        return Inputs(tuple(map(fn, self.parts)))

    def __getitem__(self, at: Any) -> Inputs:
        return self.map(lambda part: part[at])

    def __len__(self) -> int:
        return len(self.tensors[0])

    def to(self, device: Any) -> Inputs:
        return self.map(lambda part: part.to(device))

    def clone(self) -> Inputs:
        return self.map(torch.clone)

    @property
    def shape(self) -> tuple[Any, ...]:
        """How many examples, and each one's inputs in words."""
        names = self.parts if isinstance(self.parts, dict) else range(len(self.parts))
        return (len(self), *(f"{name} {list(part.shape[1:])}" for name, part in zip(names, self.tensors, strict=True)))

    @property
    def dtype(self) -> tuple[torch.dtype, ...]:
        return tuple(part.dtype for part in self.tensors)

    @property
    def _version(self) -> int:
        return sum(part._version for part in self.tensors)

    def is_floating_point(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"Inputs of {len(self)} examples: {', '.join(self.shape[1:])}"


def _flat(inputs: Inputs) -> tuple[list[Tensor], Any]:
    return inputs.tensors, tuple(inputs.parts) if isinstance(inputs.parts, dict) else None


def _whole(tensors: Any, names: Any) -> Inputs:
    return Inputs(tuple(tensors) if names is None else dict(zip(names, tensors, strict=True)))


register_pytree_node(Inputs, _flat, _whole)
