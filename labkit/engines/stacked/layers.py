"""Layers: torch's own for K stacked peers, without vmap and without autograd, which cost more than a small layer does.

A rule maps a layer, its tensors [K, …] by name and its inputs [K, B, …] to its outputs [K, B, …] and the way back: what
maps the gradient of the outputs to that of the inputs, and adds its parameters' to those that were found. With autograd
on, the outputs are differentiable as any others, and nobody needs the way back.

Linear layers and convolutions leave the batch innermost in memory (they compute W xᵀ), as `convolution` does; rules
keep that layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from labkit.engines.stacked.convolution import convolution_and_back, stacked_convolution

Gradients = dict[str, Tensor]  # of parameters, by name
Back = Callable[[Tensor, Gradients, bool], Tensor | None]  # from ∂outputs to ∂inputs, where the flag asks for them
Passed = tuple[Tensor, Back]
Rule = Callable[[Any, str, Mapping[str, Tensor], Tensor], Passed | None]


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule for a layer, or None: only for torch's own class itself, and while no hook looks at the layer.

    A rule in turn returns None for inputs or settings that it does not know.
    """
    return None if hooked(layer) else _RULES.get(type(layer))


def hooked(layer: nn.Module) -> bool:
    """Whether somebody looks at what goes in and out of the layer, or has replaced what it does."""
    looks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(looks) or "forward" in vars(layer) or _has_any_global_hook()  # type: ignore[no-untyped-call]


def batch_innermost(x: Tensor) -> bool:
    """Whether [B, C, …] lies in memory with the batch as its last dimension."""
    return x.dim() > 2 and x.stride(0) == 1 and x.stride(-1) == len(x)


def _linear(layer: nn.Linear, prefix: str, tensors: Mapping[str, Tensor], x: Tensor) -> Passed | None:
    """(W xᵀ + b)ᵀ, so that the gradient of W has W's own layout and is not copied."""
    if x.dim() != 3 or x.shape[-1] != layer.in_features:
        return None
    weight, bias = tensors[prefix + "weight"], tensors.get(prefix + "bias")
    y = torch.bmm(weight, x.mT) if bias is None else torch.baddbmm(bias.unsqueeze(-1), weight, x.mT)  # [K, O, B]

    def back(dy: Tensor, found: Gradients, wants_x: bool) -> Tensor | None:
        dy = dy.mT
        dx = torch.bmm(weight.mT, dy).mT if wants_x else None
        if bias is not None:
            found[prefix + "bias"] = dy.sum(-1)
        found[prefix + "weight"] = torch.bmm(dy, x)
        return dx

    return y.mT, back


def _convolution(layer: Any, prefix: str, tensors: Mapping[str, Tensor], x: Tensor) -> Passed | None:
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if not plain or x.dim() != 3 + len(layer.kernel_size):
        return None
    weight, bias = tensors[prefix + "weight"], tensors.get(prefix + "bias")
    given = x, weight, bias, layer.stride, layer.padding, layer.dilation
    if torch.is_grad_enabled():
        return stacked_convolution(*given), _by_autograd
    y, gradients = convolution_and_back(*given)

    def back(dy: Tensor, found: Gradients, wants_x: bool) -> Tensor | None:
        dx, dweight, dbias = gradients(dy.movedim(1, -1).contiguous(), wants_x)
        found[prefix + "weight"] = dweight
        if bias is not None:
            found[prefix + "bias"] = dbias
        return dx

    return y.movedim(-1, 1), back


def _relu(layer: nn.ReLU, prefix: str, tensors: Mapping[str, Tensor], x: Tensor) -> Passed:
    y = x.relu()
    return y, lambda dy, found, wants_x: torch.ops.aten.threshold_backward(dy, y, 0) if wants_x else None


def _elementwise(layer: nn.Module, prefix: str, tensors: Mapping[str, Tensor], x: Tensor) -> Passed:
    """Each number by itself; a dropout's mask is then another one for each peer."""
    if getattr(layer, "inplace", False):
        return _passed(lambda x: layer.forward(x.clone()), x)
    return _passed(layer.forward, x)


def _pooling(layer: Any, prefix: str, tensors: Mapping[str, Tensor], x: Tensor) -> Passed | None:
    """As a picture more of a larger batch; with the batch innermost that is torch's "channels last"."""
    if x.dim() != 5 or getattr(layer, "return_indices", False):
        return None

    def pooled(x: Tensor) -> Tensor:
        if batch_innermost(x[0]):
            y = layer.forward(x.transpose(1, 2).flatten(0, 1))  # [K·C, B, …]
            return torch.unflatten(y, 0, (len(x), x.shape[2])).transpose(1, 2)
        return torch.unflatten(layer.forward(x.flatten(0, 1)), 0, x.shape[:2])  # of [K·B, C, …]

    return _passed(pooled, x)


def _passed(function: Callable[[Tensor], Tensor], x: Tensor) -> Passed:
    """A function without parameters, whose way back is autograd's."""
    if torch.is_grad_enabled():
        return function(x), _by_autograd
    inputs = x.detach().requires_grad_()
    with torch.enable_grad():
        y = function(inputs)
    return y.detach(), lambda dy, found, wants_x: torch.autograd.grad(y, inputs, dy)[0] if wants_x else None


def _by_autograd(dy: Tensor, found: Gradients, wants_x: bool) -> Tensor | None:
    raise AssertionError("with autograd on, nobody needs the way back")


def _flatten(layer: nn.Flatten, prefix: str, tensors: Mapping[str, Tensor], x: Tensor) -> Passed | None:
    start, end = (n + 1 if n >= 0 else n for n in (layer.start_dim, layer.end_dim))
    return _reshaped(x, x.flatten(start, end)) if start >= 2 else None


def _unflatten(layer: nn.Unflatten, prefix: str, tensors: Mapping[str, Tensor], x: Tensor) -> Passed | None:
    if not isinstance(layer.dim, int) or layer.dim < 1:
        return None
    return _reshaped(x, torch.unflatten(x, layer.dim + 1, layer.unflattened_size))


def _reshaped(x: Tensor, y: Tensor) -> Passed:
    return y, lambda dy, found, wants_x: dy.reshape(x.shape)


_ELEMENTWISE = (
    nn.Identity,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Dropout,
)
_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ReLU: _relu,
    nn.MaxPool2d: _pooling,
    nn.AvgPool2d: _pooling,
    nn.AdaptiveAvgPool2d: _pooling,
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}
