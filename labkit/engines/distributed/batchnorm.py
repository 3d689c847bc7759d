"""Synchronised batch normalisation: mean and variance over the batches of all ranks.

torch's SyncBatchNorm does this on GPUs and refuses tensors on the CPU; there it is done here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

from labkit.exchange.group import RankGroup


def synchronised(net: nn.Module, group: RankGroup, device: torch.device) -> nn.Module:
    """The module with its batch normalisation layers synchronised; parameters and statistics stay the same tensors."""
    if device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        for layer in net.modules():
            if isinstance(layer, nn.SyncBatchNorm):
                layer.register_forward_hook(partial(_count, group))
        return net
    if isinstance(net, _BatchNorm):
        return SynchronisedBatchNorm(net, group)
    for name, child in net.named_children():
        setattr(net, name, synchronised(child, group, device))
    return net


class SynchronisedBatchNorm(_BatchNorm):
    """y = γ (x − μ) / √(σ² + ε) + β with μ and σ² over the batches of all ranks (arXiv:1502.03167, Alg. 1)."""

    def __init__(self, layer: _BatchNorm, group: RankGroup) -> None:
        tracks = layer.track_running_stats
        super().__init__(layer.num_features, layer.eps, layer.momentum, affine=False, track_running_stats=tracks)
        self.affine, self.weight, self.bias = layer.affine, layer.weight, layer.bias
        for name, buffer in layer.named_buffers():
            setattr(self, name, buffer)
        self._group = group
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, …] → [B, C, …]."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        others = [d for d in range(x.dim()) if d != 1]
        count = x.new_full((1,), x.numel() / x.shape[1])
        sums = _Sum.apply(torch.cat([x.sum(others), count]), self._group)  # type: ignore[no-untyped-call]
        n = sums[-1].detach()
        shape = (1, -1, *(1,) * (x.dim() - 2))
        mean = sums[:-1] / n  # [C]
        centred = x - mean.view(shape)
        var = _Sum.apply(centred.square().sum(others), self._group) / n  # type: ignore[no-untyped-call]
        self._remember(mean.detach(), var.detach() * n / (n - 1))
        y: Tensor = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    def _remember(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var, share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Whatever has channels: the layer that this one replaces took it."""


class _Sum(Function):
    """Σⱼ xⱼ over the ranks; its gradient with respect to xᵢ is the sum of the gradients that all ranks have of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: RankGroup) -> Tensor:
        ctx.group = group
        return group.all_reduce(x.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        group: RankGroup = ctx.group
        return group.all_reduce(gradients[0].clone(memory_format=torch.contiguous_format)), None


def _count(group: RankGroup, layer: nn.SyncBatchNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """torch's layer gathers mean, deviation and count of each rank, and sums two gradients per channel on its way back.

    See torch.nn.modules._functions.SyncBatchNorm.
    """
    if layer.training:
        channels, itemsize = layer.num_features, 4
        group.sent += (group.size - 1) * (2 * channels + 1) * itemsize + group.ring(2 * channels * itemsize)
