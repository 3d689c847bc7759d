"""Models of any kind: K peers at once by vmap(called); layers that it makes slow are computed otherwise.

- a convolution as batched matrix products (see `convolution`) instead of a grouped convolution;
- pooling in the layout that leaves: the batch innermost, which is torch's "channels last" once batch and channels swap;
- attention by its formula, as vmap computes the fused one peer after peer;
- an embedding without the gradient of its padding, which vmap forgets to leave out;
- a linear layer as (W xᵀ)ᵀ instead of x Wᵀ, so that the gradient of W has W's own layout and is not copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from labkit.engines.modules import called
from labkit.engines.stacked.convolution import stacked_convolution
from labkit.engines.stacked.layers import batch_innermost

_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_POOLINGS = {F.avg_pool1d, F.avg_pool2d, F.max_pool1d, F.max_pool2d}
_ATTENTION = {F.scaled_dot_product_attention, F.multi_head_attention_forward}


def vmapped(
    model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor, shared: bool = False
) -> tuple[Any, dict[str, Tensor]]:
    """The outputs [K, B, …] of K peers of `model`, and the buffers [K, …] that it assigned anew.

    Inputs are [B, …] for all of them where they are `shared`.
    """

    def one(tensors: dict[str, Tensor], x: Tensor) -> Any:
        return called(model, tensors, x)

    with _FasterLayers(), _without_advice():
        return vmap(one, in_dims=(0, None if shared else 0), randomness="different")(dict(tensors), inputs)  # type: ignore[no-any-return]


@contextmanager
def _without_advice() -> Iterator[None]:
    """Torch says of some operators that it computes them peer after peer: nobody needs to know."""
    advise: Any = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
    advise(False)
    try:
        yield
    finally:
        advise(True)  # as it is by default


class _FasterLayers(TorchFunctionMode):
    """While active, functions of one peer that are slow under vmap are computed as above."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        if func is F.embedding:
            return _embedding(*args, **(kwargs or {}))
        if func in _CONVOLUTIONS:
            return _convolution(func, _CONVOLUTIONS[func], *args, **(kwargs or {}))
        if func in _ATTENTION:
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **(kwargs or {}))
        if func in _POOLINGS and args and batch_innermost(args[0]):
            return func(args[0].transpose(0, 1), *args[1:], **(kwargs or {})).transpose(0, 1)
        return func(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.dim() != 2:
        return F.linear(input, weight, bias)
    y = (weight @ input.mT).mT
    return y if bias is None else y + bias


def _embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """vmap forgets that the padding's row has no gradient."""
    rows = F.embedding(input, weight, None, *args, **kwargs)
    if padding_idx is None:
        return rows
    return torch.where((input == padding_idx % len(weight)).unsqueeze(-1), rows.detach(), rows)


def _convolution(
    func: Any,
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Any:
    if groups != 1 or isinstance(padding, str) or input.dim() != dims + 2:
        return func(input, weight, bias, stride, padding, dilation, groups)
    numbers = ((n,) * dims if isinstance(n, int) else tuple(n) for n in (stride, padding, dilation))
    return _OnePeersConvolution.apply(input, weight, bias, *numbers)  # type: ignore[no-untyped-call]


class _OnePeersConvolution(Function):
    """The convolution of one peer, which knows what it is under vmap, and is used nowhere else."""

    @staticmethod
    def forward(x: Tensor, *others: Any) -> Tensor:
        """What is the same for all peers: frozen kernels on shared inputs."""
        out: Tensor = (torch.conv1d, torch.conv2d, torch.conv3d)[x.dim() - 3](x, *others)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        def stacked(tensor: Tensor | None, dim: int | None) -> Tensor | None:
            if tensor is None:
                return None
            return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

        x, weight, bias = (stacked(tensor, dim) for tensor, dim in zip(args[:3], in_dims[:3], strict=True))
        return stacked_convolution(x, weight, bias, *args[3:]), 0  # type: ignore[arg-type]
