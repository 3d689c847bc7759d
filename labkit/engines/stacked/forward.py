"""Stacking: the forward pass of K peers of one model at once, parameters [K, …] and inputs [K, B, …].

Torch's own layers, one after the other, are computed by the rules of `layers`; vmap(functional_call) does everything
else. While it runs, the layers that it makes slow are computed differently:

- a convolution as one batched matrix product (see `convolution`) instead of a grouped convolution;
- pooling in the layout that leaves: the batch innermost, which is torch's "channels last" once batch and channels swap;
- attention by its formula, as vmap computes the fused one peer after peer;
- an embedding without the gradient of its padding, which vmap forgets to leave out;
- a linear layer as (W xᵀ)ᵀ instead of x Wᵀ, so that the gradient of W has W's own layout and is not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from labkit.engines.stacked.convolution import stacked_convolution
from labkit.engines.stacked.layers import Rule, batch_innermost, hooked, rule_of
from labkit.errors import ModelError

Loss = Callable[[Tensor, Tensor], Tensor]


def stacked_forward(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor, *, shared: bool = False) -> Any:
    """The outputs [K, B, …] of K peers of `model`, differentiable in `tensors`; see `StackedModel`.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> stack = {name: p.detach().expand(10, *p.shape).clone() for name, p in model.named_parameters()}
    >>> stacked_forward(model, stack, torch.rand(10, 8, 4)).shape
    torch.Size([10, 8, 3])
    """
    return StackedModel(model, tensors)(tensors, inputs, shared=shared)


class StackedModel:
    """The forward pass of K peers of `model`, whose parameters and buffers [K, …] have the names `stacked`.

    What is not there is the model's own, the same for all. Inputs are [K, B, …], or [B, …] for all peers where they are
    `shared`. Dropout has a mask for each peer. Calling raises ModelError where the model does what cannot be stacked,
    such as a branch that depends on the data.
    """

    def __init__(self, model: nn.Module, stacked: Collection[str]) -> None:
        self._model = model
        # Missing are the names of frozen layers, and the second one of weights that two layers share: vmap's business.
        self._pieces = [] if _names(model) - set(stacked) else list(_pieces(model, ""))

    def __call__(self, tensors: Mapping[str, Tensor], inputs: Tensor, *, shared: bool = False) -> Any:
        if shared or not self._pieces:
            return _vmapped(self._model, tensors, inputs, shared)
        x: Any = inputs
        for piece in self._pieces:
            own = {name: tensors[full] for name, full in piece.names}
            out = None if piece.rule is None else piece.rule(piece.layer, own, x)
            x = _vmapped(piece.layer, own, x) if out is None else out
        return x


class _Piece(NamedTuple):
    """A part of a model that is computed in one go: its rule, if there is one, and its names for tensors and theirs."""

    layer: nn.Module
    rule: Rule | None
    names: list[tuple[str, str]]


def _pieces(module: nn.Module, prefix: str) -> Iterator[_Piece]:
    if type(module) is nn.Sequential and not hooked(module):
        for name, child in module._modules.items():
            assert child is not None
            yield from _pieces(child, f"{prefix}{name}.")
    else:
        yield _Piece(module, rule_of(module), [(name, prefix + name) for name in sorted(_names(module))])


def _names(module: nn.Module) -> set[str]:
    named = module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    return {name for name, _ in chain(*named)}


def _vmapped(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor, shared: bool = False) -> Any:
    def one(tensors: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(model, tensors, (x,))

    try:
        with _FasterLayers():
            return vmap(one, in_dims=(0, None if shared else 0), randomness="different")(dict(tensors), inputs)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("vmap", "atching rule")):
            raise
        raise ModelError(
            f"{type(model).__name__} cannot be stacked ({str(error).split('. ')[0].splitlines()[0]}): change that in "
            "its forward(), or train with lk.Lockstep() or one peer per worker (on=lab)."
        ) from error


def stacked_loss(criterion: Loss) -> Loss:
    """What maps the outputs [K, B, …] and targets [K, B, …] of K peers to their losses [K].

    >>> losses = stacked_loss(F.cross_entropy)
    >>> losses(torch.zeros(3, 8, 4), torch.zeros(3, 8, dtype=torch.long))
    tensor([1.3863, 1.3863, 1.3863])
    """
    each: Loss = vmap(criterion, randomness="different")

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return each(logits, targets)
        losses = F.cross_entropy(
            logits.movedim(2, 1), targets, reduction="none"
        )  # the layout of a stacked linear layer
        return losses.flatten(1).sum(1) / (targets != _IGNORED).flatten(1).sum(1)

    return cross_entropy if criterion is F.cross_entropy else each


def stacked_losses(criterion: Loss) -> Loss:
    """What maps the outputs [K, B, …] and targets [K, B, …] of K peers to the loss [K, B] of each example.

    >>> stacked_losses(F.cross_entropy)(torch.zeros(3, 8, 4), torch.zeros(3, 8, dtype=torch.long)).shape
    torch.Size([3, 8])
    """
    each: Loss = vmap(vmap(criterion, randomness="different"), randomness="different")

    def one_by_one(outputs: Tensor, targets: Tensor) -> Tensor:
        return each(outputs.unsqueeze(2), targets.unsqueeze(2))  # batches of one

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point() or targets.dim() > 2:
            return one_by_one(logits, targets)
        return F.cross_entropy(logits.movedim(2, 1), targets, reduction="none")

    return cross_entropy if criterion is F.cross_entropy else one_by_one


_IGNORED = -100  # targets that F.cross_entropy leaves out of its mean
_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_POOLINGS = {F.avg_pool1d, F.avg_pool2d, F.max_pool1d, F.max_pool2d}
_ATTENTION = {F.scaled_dot_product_attention, F.multi_head_attention_forward}


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
