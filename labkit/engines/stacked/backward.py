"""Backward: the gradients of K stacked peers, along the way back that their layers' rules know, instead of autograd's.

Autograd's bookkeeping costs a small layer more than its products do. So a model whose every layer has a rule is one
node of autograd's graph, whatever an algorithm then does with its outputs or its loss; and where that is a step on the
loss itself, autograd is not asked at all. The node refuses what autograd refuses: a second way back, and one over
tensors that have changed in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from labkit.engines.stacked.layers import Gradients

WayBack = Callable[[Tensor | None], Gradients]  # from ∂outputs, or None where they are ones, to the parameters'


def one_node(
    outputs: Tensor,
    back: WayBack,
    reads: Sequence[Tensor],
    params: Mapping[str, Tensor],
    again: Callable[[Mapping[str, Tensor]], Tensor],
) -> Tensor:
    """`outputs`, computed from `params` without autograd, as one node of its graph; `back` reads the tensors `reads`.

    `again` computes them from parameters with autograd, for who wants to differentiate more than once.
    """
    out: Tensor = _Node.apply(outputs, back, reads, params, again, *params.values())  # type: ignore[no-untyped-call]
    return out


def way_back(outputs: Tensor, params: Mapping[str, Tensor]) -> WayBack | None:
    """The way back from these outputs, to be gone once, if they are `one_node` of these parameters.

    None where autograd is off, or somebody looks at the gradients of outputs or parameters. Raises RuntimeError in
    torch's words where what it reads has changed since, and for a second time.
    """
    node: Any = outputs.grad_fn
    if getattr(node, "params", None) is not params or not torch.is_grad_enabled() or outputs.retains_grad:
        return None
    if outputs._backward_hooks or any(p._backward_hooks or p._post_accumulate_grad_hooks for p in params.values()):
        return None
    _require_unchanged(node.reads)
    _require_first_time(node)
    node.gone = True
    back: WayBack = node.back
    return back


class _Node(Function):
    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, back: WayBack, reads: Any, params: Any, again: Any, *values: Tensor
    ) -> Tensor:
        ctx.back, ctx.params, ctx.again, ctx.gone = back, params, again, False
        ctx.reads, ctx.values = _versions(reads), _versions(values)
        ctx.save_for_backward(outputs)  # so that torch knows when the graph is freed
        return outputs.clone()

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        _require_unchanged(ctx.reads)
        _require_first_time(ctx)
        nothing = (None,) * 5
        if torch.is_grad_enabled():  # somebody differentiates the gradients
            _require_unchanged(ctx.values)
            values = [value for value, _ in ctx.values]
            outputs = ctx.again(dict(zip(ctx.params, values, strict=True)))
            return *nothing, *torch.autograd.grad(outputs, values, d, create_graph=True)
        found = ctx.back(d)
        return *nothing, *(found[name] for name in ctx.params)


def _versions(tensors: Iterable[Tensor]) -> list[tuple[Tensor, int]]:
    """Tensors, and how often each was changed in place."""
    return [(tensor, tensor._version) for tensor in tensors]


def _require_unchanged(seen: Iterable[tuple[Tensor, int]]) -> None:
    for tensor, version in seen:
        if tensor._version != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"a tensor {list(tensor.shape)} is at version {tensor._version}, expected version {version} instead."
            )


def _require_first_time(node: Any) -> None:
    node.saved_tensors  # noqa: B018  raises torch's error where the graph was freed
    if node.gone:
        raise RuntimeError("Trying to backward through the graph a second time: its way back has been gone already.")
