"""Convolution of K peers at once: every peer's batch with its own kernels, as batched matrix products.

vmap(conv) becomes a grouped convolution, which no CPU library does well. Here the patches of peer k are the columns of
a matrix Pₖ and its kernels the rows of Wₖ (im2col; Chellapilla, Puri and Simard, 2006):

    Yₖ = Wₖ Pₖ + bₖ,    ∂Wₖ = ∂Yₖ Pₖᵀ,    ∂Pₖ = Wₖᵀ ∂Yₖ

Along the first of several axes the patches are not copied (as in MEC; Cho and Brand, arXiv:1706.06873): the columns
that number i of the kernel meets are a range Pₖⁱ of the others, and Yₖ = Σᵢ Wₖⁱ Pₖⁱ + bₖ. The batch is the innermost
dimension in memory, as in cuda-convnet, so that a patch is a run of whole vectors. Outputs keep that layout: layers
between two convolutions work in it unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Gradients = tuple[Tensor | None, Tensor, Tensor]  # of inputs, kernels and biases


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
    y: Tensor = _Convolution.apply(x, weight, bias, stride, padding, dilation)  # type: ignore[no-untyped-call]
    return y.movedim(-1, 1)


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *numbers: Sequence[int]) -> Tensor:
        y, ctx.back = convolution_and_back(x, weight, bias, *numbers)
        ctx.save_for_backward(weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ctx.saved_tensors  # noqa: B018  raises torch's error if the kernels have changed since
        wants_x, _, wants_bias, *_ = ctx.needs_input_grad
        dx, dweight, dbias = ctx.back(dy, wants_x)
        return dx, dweight, dbias if wants_bias else None, None, None, None


def convolution_and_back(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Callable[[Tensor, bool], Gradients]]:
    """The outputs as [K, O, …, B], and what maps their gradient to the others; to the inputs' where its flag is set."""
    given, shape = x.shape, weight.shape
    settings = [*zip(x.shape[3:], shape[3:], stride, padding, dilation, strict=True)]
    y = x.new_empty(*shape[:2], *(_Axis(*numbers).out for numbers in settings), x.shape[1])
    if len(settings) == 1 or stride[0] != 1:  # an axis of one number goes first
        x, weight, settings = x.unsqueeze(3), weight.unsqueeze(3), [(1, 1, 1, 0, 1), *settings]
    first, *others = (_Axis(*numbers) for numbers in settings)
    patches = _patches(x, first, others)  # [K, C · kernel, columns of all outputs, first axis padded]
    row = patches.shape[2] // first.padded
    ranges = [slice(at * row, (at + first.out) * row) for at in range(0, first.kernel * first.dilation, first.dilation)]
    kernels = [kernel.flatten(2) for kernel in weight.unbind(3)]  # [K, O, C · kernel] for each range
    outputs = y.flatten(2)  # [K, O, columns]
    if bias is not None:
        outputs.copy_(bias.unsqueeze(-1))
    for at, (kernel, columns) in enumerate(zip(kernels, ranges, strict=True)):
        outputs.baddbmm_(kernel, patches[:, :, columns], beta=int(at > 0 or bias is not None))

    def back(dy: Tensor, wants_x: bool) -> Gradients:
        dy = dy.flatten(2)
        dkernels = [torch.bmm(dy, patches[:, :, columns].mT).view(weight[:, :, :, 0].shape) for columns in ranges]
        dx = None
        if wants_x:
            dpatches = torch.empty_like(patches)
            dpatches[:, :, ranges[0].stop :] = 0.0
            for at, (kernel, columns) in enumerate(zip(kernels, ranges, strict=True)):
                dpatches[:, :, columns].baddbmm_(kernel.mT, dy, beta=int(at > 0))
            dx = _fold(dpatches, x, first, others).reshape(given)
        return dx, torch.stack(dkernels, dim=3).view(shape), dy.sum(-1)

    return y, back


@dataclass(frozen=True)
class _Axis:
    """One spatial dimension: its size, and the convolution's settings along it."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def padded(self) -> int:
        return self.size + 2 * self.padding

    @property
    def out(self) -> int:
        return (self.padded - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def reach(self, at: int) -> tuple[slice, slice]:
        """The outputs for which number `at` of the kernel falls on an input, and those inputs."""
        shift = at * self.dilation - self.padding  # output i looks at input i · stride + shift
        first = max(0, -(shift // self.stride))
        last = min(self.out - 1, (self.size - 1 - shift) // self.stride)
        start = first * self.stride + shift
        count = max(0, last - first + 1)
        return slice(first, first + count), slice(start, start + count * self.stride, self.stride)


def _patches(x: Tensor, first: _Axis, others: Sequence[_Axis]) -> Tensor:
    """What each output looks at along the other axes, as columns [K, C · kernel, padded first · out · B]."""
    border = [0, 0, *(axis.padding for axis in (*reversed(others), first) for _ in range(2))]
    padded = F.pad(x.movedim(1, -1), border).contiguous()  # [K, C, first, …, B]
    peers, channels, ahead, *inner, batch = padded.stride()
    view = padded.as_strided(
        (
            *padded.shape[:2],
            *(axis.kernel for axis in others),
            first.padded,
            *(axis.out for axis in others),
            padded.shape[-1],
        ),
        (
            peers,
            channels,
            *(n * axis.dilation for n, axis in zip(inner, others, strict=True)),
            ahead,
            *(n * axis.stride for n, axis in zip(inner, others, strict=True)),
            batch,
        ),
    )
    return view.flatten(1, 1 + len(others)).flatten(2)


def _fold(patches: Tensor, x: Tensor, first: _Axis, others: Sequence[_Axis]) -> Tensor:
    """Add up, for each input number, the columns that held it: the transpose of `_patches`, [K, B, C, …]."""
    kernel, out = [axis.kernel for axis in others], [axis.out for axis in others]
    parts = patches.view(len(x), x.shape[2], *kernel, first.padded, *out, x.shape[1])
    dx = patches.new_zeros(len(x), x.shape[2], *x.shape[3:], x.shape[1])
    everything, rows = (slice(None), slice(None)), slice(first.padding, first.padding + first.size)
    for at in product(*(range(axis.kernel) for axis in others)):
        outputs, inputs = zip(*(axis.reach(n) for axis, n in zip(others, at, strict=True)), strict=True)
        dx[(*everything, slice(None), *inputs)].add_(parts[(*everything, *at, rows, *outputs)])
    return dx.movedim(-1, 1)
