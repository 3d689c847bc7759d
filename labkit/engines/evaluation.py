"""Evaluation: what a trained model predicts, how often it is right, and how the user gets it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

AT_ONCE = 4096  # examples


def classes(net: nn.Module, inputs: Tensor) -> Tensor:
    """The classes [N] that a model in evaluation mode gives inputs [N, …]."""
    with torch.no_grad():
        return torch.cat([net(x).argmax(-1) for x in torch.split(inputs, AT_ONCE)])


def accuracies(predicted: Tensor, targets: Tensor) -> tuple[float, ...]:
    """The share of targets [N] that each row of predictions [K, N] gets right."""
    right = (predicted == targets).flatten(1).float().mean(1)
    return tuple(right.tolist())


def trained(model: nn.Module) -> nn.Module:
    """A trained model as it is handed to the user: on the CPU, in evaluation mode, without gradients."""
    model = model.cpu().eval()
    model.zero_grad(set_to_none=True)
    return model
