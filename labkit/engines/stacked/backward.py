"""Backward: the gradients of K stacked peers, along the way back that their layers' rules know, instead of autograd's.

Autograd's bookkeeping costs a small layer more than its products do. So a model whose every layer has a rule is one
node of autograd's graph, whatever an algorithm then does with its outputs or its loss; and where that is a step on the
loss itself, autograd is not asked at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from labkit.engines.stacked.layers import Gradients

WayBack = Callable[[Tensor | None], Gradients]  # from ∂outputs, or None where they are ones, to the parameters'


def one_node(
    outputs: Tensor, back: WayBack, params: Mapping[str, Tensor], again: Callable[[Mapping[str, Tensor]], Tensor]
) -> Tensor:
    """`outputs`, computed from `params` without autograd, as one node of its graph.

    `again` computes them from parameters with autograd, for who wants to differentiate more than once.
    """
    out: Tensor = _Node.apply(outputs, back, params, again, *params.values())  # type: ignore[no-untyped-call]
    return out


def way_back(outputs: Tensor, params: Mapping[str, Tensor]) -> WayBack | None:
    """The way back from these outputs, if they are `one_node` of these parameters and nobody looks on.

    Raises torch's error where the parameters have changed since.
    """
    node: Any = outputs.grad_fn
    if getattr(node, "params", None) is not params or outputs._backward_hooks:
        return None
    node.saved_tensors  # noqa: B018
    back: WayBack = node.back
    return back


class _Node(Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, back: WayBack, params: Any, again: Any, *values: Tensor) -> Tensor:
        ctx.back, ctx.params, ctx.again = back, params, again
        ctx.save_for_backward(*values)
        return outputs.clone()

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        values = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates the gradients
            outputs = ctx.again(dict(zip(ctx.params, values, strict=True)))
            return None, None, None, None, *torch.autograd.grad(outputs, values, d, create_graph=True)
        found = ctx.back(d)
        return None, None, None, None, *(found[name] for name in ctx.params)
