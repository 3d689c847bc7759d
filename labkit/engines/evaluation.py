"""Evaluation: what a trained model predicts, how often it is right, and how the user gets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from labkit.errors import ModelError

AT_ONCE = 4096  # examples


def outputs_of(out: Any) -> Tensor:
    """The outputs proper in what a model's forward returned: a tensor, `out["logits"]`, `out.logits` or `out[0]`.

    Raises ModelError where none of these is a tensor.

    >>> outputs_of({"logits": torch.zeros(2, 3), "hidden": torch.zeros(2, 8)}).shape
    torch.Size([2, 3])
    """
    if isinstance(out, Tensor):
        return out
    found = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    if found is None and isinstance(out, tuple | list) and out:
        found = out[0]
    if not isinstance(found, Tensor):
        raise ModelError(
            f"The model returns a {type(out).__name__} without a tensor of outputs: let forward return a tensor, a "
            'tuple that begins with it, or a dict or an object with "logits".'
        )
    return found


def classes(net: nn.Module, inputs: Tensor) -> Tensor:
    """The classes [N] that a model in evaluation mode gives inputs [N, …]."""
    with torch.no_grad():
        return torch.cat([outputs_of(net(x)).argmax(-1) for x in torch.split(inputs, AT_ONCE)])


def accuracies(predicted: Tensor, targets: Tensor) -> tuple[float, ...]:
    """The share of targets [N] that each row of predictions [K, N] gets right."""
    right = (predicted == targets).flatten(1).float().mean(1)
    return tuple(right.tolist())


def trained(model: nn.Module) -> nn.Module:
    """A trained model as it is handed to the user: on the CPU, in evaluation mode, without gradients."""
    model = model.cpu().eval()
    model.zero_grad(set_to_none=True)
    return model
