"""Stacking: the forward pass of K peers of one model at once, parameters [K, …] and inputs [K, B, …].

Torch's own layers, one after the other, are computed by the rules of `layers`; vmap(functional_call) does everything
else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labkit.engines.stacked.backward import WayBack
from labkit.engines.stacked.layers import Back, Gradients, Rule, hooked, rule_of
from labkit.engines.stacked.vmapped import vmapped


def stacked_forward(model: nn.Module, tensors: dict[str, Tensor], inputs: Tensor, *, shared: bool = False) -> Any:
    """The outputs [K, B, …] of K peers of `model`, differentiable in `tensors`; see `StackedModel`.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> stack = {name: p.detach().expand(10, *p.shape).clone() for name, p in model.named_parameters()}
    >>> stacked_forward(model, stack, torch.rand(10, 8, 4)).shape
    torch.Size([10, 8, 3])
    """
    return StackedModel(model, tensors)(tensors, inputs, shared=shared)


class StackedModel:
    """The forward pass of K peers of `model`, whose parameters and buffers [K, …] have the names `stacked`.

    What is not there is the model's own, the same for all. Inputs are [K, B, …], or [B, …] for all peers where they are
    `shared`. Dropout has a mask for each peer. Calling raises torch's error where the model does what cannot be
    stacked, such as a branch that depends on the data; buffers that it assigns anew are put into the given tensors.

    `known` tells whether every layer has a rule, and computes the same each time.
    """

    def __init__(self, model: nn.Module, stacked: Collection[str]) -> None:
        self._model = model
        # Missing are the names of frozen layers, and the second one of weights that two layers share: vmap's business.
        self._pieces = [] if _names(model) - set(stacked) else _pools_first(list(_pieces(model, "")))
        self.known = all(piece.rule and not isinstance(piece.layer, nn.Dropout) for piece in self._pieces)
        self.known = self.known and any(piece.names for piece in self._pieces)

    def __call__(self, tensors: dict[str, Tensor], inputs: Tensor, *, shared: bool = False) -> Any:
        if shared or not self._pieces:
            out, assigned = vmapped(self._model, tensors, inputs, shared)
            tensors.update(assigned)
            return out
        x: Any = inputs
        for piece in self._pieces:
            passed = None if piece.rule is None else piece.rule(piece.layer, piece.prefix, tensors, x)
            if passed is None:
                x, assigned = vmapped(piece.layer, {name: tensors[piece.prefix + name] for name in piece.names}, x)
                tensors.update({piece.prefix + name: tensor for name, tensor in assigned.items()})
            else:
                x = passed[0]
        return x

    def passed(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, WayBack, list[Tensor]] | None:
        """The outputs of a `known` model, the way back, and what of the caller's that reads, with autograd off.

        None for inputs that a rule refuses.
        """
        backs: list[Back] = []
        reads = [inputs]
        x = inputs
        for piece in self._pieces:
            assert piece.rule is not None
            passed = piece.rule(piece.layer, piece.prefix, tensors, x)
            if passed is None:
                return None
            x = passed[0]
            if backs and piece.names:  # the gradient of the inputs wants the weights, that of the weights the inputs
                reads.append(tensors[piece.prefix + "weight"])
            if backs or piece.names:  # nobody asks for the gradients of what comes before the first parameters
                backs.append(passed[1])

        def back(dy: Tensor | None) -> Gradients:
            found: Gradients = {}
            dy = torch.ones_like(x) if dy is None else dy
            for one in backs[:0:-1]:
                dx = one(dy, found, True)
                assert dx is not None
                dy = dx
            backs[0](dy, found, False)
            return found

        return x, back, reads


class _Piece(NamedTuple):
    """A part of a model that is computed in one go: its rule, if there is one, and its own names for its tensors."""

    layer: nn.Module
    rule: Rule | None
    prefix: str
    names: list[str]


def _pieces(module: nn.Module, prefix: str) -> Iterator[_Piece]:
    if type(module) is nn.Sequential and not hooked(module):
        for name, child in module._modules.items():
            assert child is not None
            yield from _pieces(child, f"{prefix}{name}.")
    else:
        yield _Piece(module, rule_of(module), prefix, sorted(_names(module)))


def _pools_first(pieces: list[_Piece]) -> list[_Piece]:
    """The same outputs and gradients with less work: the largest of numbers cut off at zero is the largest, cut off."""
    for at in range(len(pieces) - 1):
        kinds = [type(piece.layer) for piece in pieces[at : at + 2] if piece.rule is not None]
        if kinds == [nn.ReLU, nn.MaxPool2d]:
            pieces[at : at + 2] = pieces[at + 1], pieces[at]
    return pieces


def _names(module: nn.Module) -> set[str]:
    named = module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    return {name for name, _ in chain(*named)}
