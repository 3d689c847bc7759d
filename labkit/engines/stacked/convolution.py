"""Convolution of K peers at once: every peer's batch with its own kernels, as one batched matrix product.

vmap(conv) becomes a grouped convolution, which no CPU library does well. Here the patches of peer k are the columns of
a matrix Pₖ, its kernels the rows of Wₖ, and

    Yₖ = Wₖ Pₖ + bₖ,    ∂Wₖ = ∂Yₖ Pₖᵀ,    ∂Pₖ = Wₖᵀ ∂Yₖ

(im2col; Chellapilla, Puri and Simard, 2006). The batch is the innermost dimension in memory, as in cuda-convnet, so
that a patch is a run of whole vectors. Outputs keep that layout: layers between two convolutions work in it unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def stacked_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolve [K, B, C, …] with kernels [K, O, C, …] to [K, B, O, …]: `F.conv1d`, `conv2d`, `conv3d` for each peer.

    >>> x, weight = torch.rand(5, 2, 3, 8, 8), torch.rand(5, 4, 3, 3, 3)
    >>> y = stacked_convolution(x, weight, None, (1, 1), (1, 1), (1, 1))
    >>> y.shape, torch.allclose(y[2], torch.nn.functional.conv2d(x[2], weight[2], padding=1), atol=1e-5)
    (torch.Size([5, 2, 4, 8, 8]), True)
    """
    axes = tuple(
        _Axis(*numbers) for numbers in zip(x.shape[3:], weight.shape[3:], stride, padding, dilation, strict=True)
    )
    y: Tensor = _Convolution.apply(x, weight, bias, axes)  # type: ignore[no-untyped-call]
    return y.view(*y.shape[:2], *(axis.out for axis in axes), x.shape[1]).movedim(-1, 1)


@dataclass(frozen=True)
class _Axis:
    """One spatial dimension: its size, and the convolution's settings along it."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def out(self) -> int:
        return (self.size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def reach(self, at: int) -> tuple[slice, slice]:
        """The outputs for which number `at` of the kernel falls on an input, and those inputs."""
        shift = at * self.dilation - self.padding  # output i looks at input i · stride + shift
        first = max(0, -(shift // self.stride))
        last = min(self.out - 1, (self.size - 1 - shift) // self.stride)
        start = first * self.stride + shift
        count = max(0, last - first + 1)
        return slice(first, first + count), slice(start, start + count * self.stride, self.stride)


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, axes: tuple[_Axis, ...]) -> Tensor:
        patches = _patches(x, axes)
        kernels = weight.reshape(*weight.shape[:2], -1)  # [K, O, C·kernel]
        ctx.save_for_backward(patches, kernels)
        ctx.axes, ctx.channels, ctx.batch, ctx.weight_shape = axes, x.shape[2], x.shape[1], weight.shape
        if bias is None:
            return torch.bmm(kernels, patches)  # [K, O, out·B]
        return torch.baddbmm(bias.unsqueeze(-1), kernels, patches)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        patches, kernels = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        dy = dy.contiguous()
        dx = _fold(torch.bmm(kernels.mT, dy), ctx.channels, ctx.batch, ctx.axes) if wants_x else None
        dweight = torch.bmm(dy, patches.mT).view(ctx.weight_shape) if wants_weight else None
        return dx, dweight, dy.sum(-1) if wants_bias else None, None


def _patches(x: Tensor, axes: Sequence[_Axis]) -> Tensor:
    """What each output looks at, as columns [K, C·kernel, out·B]."""
    border = [0, 0, *(axis.padding for axis in reversed(axes) for _ in range(2))]
    padded = F.pad(x.movedim(1, -1), border).contiguous()  # [K, C, …, B]
    peers, channels, *inner, batch = padded.stride()
    view = padded.as_strided(
        (*padded.shape[:2], *(axis.kernel for axis in axes), *(axis.out for axis in axes), padded.shape[-1]),
        (
            peers,
            channels,
            *(n * axis.dilation for n, axis in zip(inner, axes, strict=True)),
            *(n * axis.stride for n, axis in zip(inner, axes, strict=True)),
            batch,
        ),
    )
    rows, columns = math.prod(axis.kernel for axis in axes), math.prod(axis.out for axis in axes)
    return view.reshape(x.shape[0], x.shape[2] * rows, columns * x.shape[1])


def _fold(patches: Tensor, channels: int, batch: int, axes: Sequence[_Axis]) -> Tensor:
    """Add up, for each input number, the columns that held it: the transpose of `_patches`, [K, B, C, …]."""
    parts = patches.view(len(patches), channels, *(axis.kernel for axis in axes), *(axis.out for axis in axes), batch)
    dx = patches.new_zeros(len(patches), channels, *(axis.size for axis in axes), batch)
    everything = slice(None), slice(None)
    for at in product(*(range(axis.kernel) for axis in axes)):
        outputs, inputs = zip(*(axis.reach(n) for axis, n in zip(axes, at, strict=True)), strict=True)
        dx[(*everything, *inputs)].add_(parts[(*everything, *at, *outputs)])
    return dx.movedim(-1, 1)
