"""Losses: those of K stacked peers from their outputs [K, B, …] and targets [K, B, …]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from labkit.engines.example_losses import counted, example_losses, together

Loss = Callable[[Tensor, Tensor], Tensor]
_IGNORED = -100  # targets that F.cross_entropy leaves out of its mean


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
    """What maps the outputs [K, B, …] and targets [K, B, …] of K peers to each example's part in their losses, [K, B].

    >>> stacked_losses(F.cross_entropy)(torch.zeros(3, 8, 4), torch.zeros(3, 8, dtype=torch.long)).shape
    torch.Size([3, 8])
    """
    each: Loss = together(example_losses(criterion, together))

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point() or targets.dim() > 2:
            return each(logits, targets)
        losses = F.cross_entropy(logits.movedim(2, 1), targets, reduction="none")
        left = (targets != _IGNORED).sum(1, keepdim=True)
        return losses * (targets.shape[1] / left)

    return cross_entropy if criterion is F.cross_entropy else each


def stacked_counts(criterion: Loss) -> Loss:
    """What maps the outputs [K, B, …] and targets [K, B, …] of K peers to which examples have a part, [K, B].

    >>> stacked_counts(F.cross_entropy)(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))
    tensor([[ True, False]])
    """
    each: Loss = together(counted(criterion))

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        return each(logits, targets) if targets.is_floating_point() or targets.dim() > 2 else targets != _IGNORED

    return cross_entropy if criterion is F.cross_entropy else each


def cross_entropy_and_back(logits: Tensor, targets: Tensor) -> tuple[Tensor, Callable[[Tensor | None], Tensor]]:
    """The losses [K] of F.cross_entropy, and what maps their gradients to those of the logits [K, B, C].

    None stands for gradients of one. Raises RuntimeError for targets [K, B] that are no classes, the ignored included.

    >>> losses, back = cross_entropy_and_back(torch.zeros(3, 8, 4), torch.zeros(3, 8, dtype=torch.long))
    >>> losses, back(None)[0, 0]
    (tensor([1.3863, 1.3863, 1.3863]), tensor([-0.0938,  0.0312,  0.0312,  0.0312]))
    """
    logs = torch.log_softmax(logits.mT, 1)  # [K, C, B], the layout of a stacked linear layer
    at, share = targets.unsqueeze(1), 1.0 / targets.shape[1]
    losses = logs.gather(1, at).sum((1, 2)).mul_(-share)

    def back(d: Tensor | None) -> Tensor:
        dlogits = logs.exp()
        dlogits.scatter_add_(1, at, dlogits.new_full((1, 1, 1), -1.0).expand_as(at))
        return dlogits.mul_(share if d is None else share * d.reshape(-1, 1, 1)).mT

    return losses, back
