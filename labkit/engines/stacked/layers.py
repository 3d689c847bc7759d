"""Layers: torch's own, computed for K stacked peers without vmap, whose bookkeeping costs more than a small layer does.

A rule maps a layer, its tensors [K, …] and its inputs [K, B, …] to its outputs [K, B, …]. Linear layers and
convolutions leave the batch innermost in memory (they compute W xᵀ), as `convolution` does; rules keep that layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from labkit.engines.stacked.convolution import stacked_convolution

Rule = Callable[[Any, Mapping[str, Tensor], Tensor], Tensor | None]


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule for a layer, or None: only for torch's own class itself, and while no hook looks at the layer.

    A rule in turn returns None for inputs or settings that it does not know.
    """
    return None if hooked(layer) else _RULES.get(type(layer))


def hooked(layer: nn.Module) -> bool:
    """Whether somebody looks at what goes in and out of the layer."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def batch_innermost(x: Tensor) -> bool:
    """Whether [B, C, …] lies in memory with the batch as its last dimension."""
    return x.dim() > 2 and x.stride(0) == 1 and x.stride(-1) == len(x)


def _linear(layer: nn.Linear, own: Mapping[str, Tensor], x: Tensor) -> Tensor | None:
    """(W xᵀ + b)ᵀ, so that the gradient of W has W's own layout and is not copied."""
    if x.dim() != 3 or x.shape[-1] != layer.in_features:
        return None
    if layer.bias is None:
        return torch.bmm(own["weight"], x.mT).mT
    return torch.baddbmm(own["bias"].unsqueeze(-1), own["weight"], x.mT).mT


def _convolution(layer: Any, own: Mapping[str, Tensor], x: Tensor) -> Tensor | None:
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if not plain or x.dim() != 3 + len(layer.kernel_size):
        return None
    return stacked_convolution(x, own["weight"], own.get("bias"), layer.stride, layer.padding, layer.dilation)


def _elementwise(layer: nn.Module, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Each number by itself; a dropout's mask is then another one for each peer."""
    out: Tensor = layer.forward(x)
    return out


def _pooling(layer: Any, own: Mapping[str, Tensor], x: Tensor) -> Tensor | None:
    """As a picture more of a larger batch; with the batch innermost that is torch's "channels last"."""
    if x.dim() != 5 or getattr(layer, "return_indices", False):
        return None
    if batch_innermost(x[0]):
        pooled: Tensor = layer(x.transpose(1, 2).flatten(0, 1))  # [K·C, B, …]
        return torch.unflatten(pooled, 0, (len(x), x.shape[2])).transpose(1, 2)
    pooled = layer(x.flatten(0, 1))  # [K·B, C, …]
    return torch.unflatten(pooled, 0, x.shape[:2])


def _flatten(layer: nn.Flatten, own: Mapping[str, Tensor], x: Tensor) -> Tensor | None:
    start, end = (n + 1 if n >= 0 else n for n in (layer.start_dim, layer.end_dim))
    return x.flatten(start, end) if start >= 2 else None


def _unflatten(layer: nn.Unflatten, own: Mapping[str, Tensor], x: Tensor) -> Tensor | None:
    if not isinstance(layer.dim, int) or layer.dim < 1:
        return None
    return torch.unflatten(x, layer.dim + 1, layer.unflattened_size)


_ELEMENTWISE = (
    nn.Identity,
    nn.ReLU,
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
    nn.MaxPool2d: _pooling,
    nn.AvgPool2d: _pooling,
    nn.AdaptiveAvgPool2d: _pooling,
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}
