"""The weights that the losses of a batch's parts have in the loss of the batch, whichever way that weighs targets."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.engines.experiment import Loss
from labkit.errors import ModelError
from labkit.models import next_token
from labkit.text import in_words

_IGNORED = -100  # what F.cross_entropy leaves out
_MEANS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
_MEAN_MODULES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
_EXACT = 1e-5  # a weight that is as near to one is one
_NEAR = 1e-3  # of a gradient or a loss, which a sum of parts may be off by


def require_weights(criterion: Loss, targets: Tensor, count: int, dim: int, logits: Tensor) -> None:
    """Raise ModelError where the weights are others at other outputs, as of a perplexity, or none make up the loss.

    The others are another draw, and ones of which the first part has larger or smaller ones than the rest, as decides
    about a largest or smallest loss.
    """
    own = partial(part_weights, criterion, targets, count, dim, logits)
    one = own()
    for seed, first in ((1, 1.0), (0, 10.0), (0, 0.1)):
        if not torch.allclose(one, own(seed, first), rtol=_NEAR, atol=_NEAR):
            raise _no_sum(count)


def part_weights(
    criterion: Loss, targets: Tensor, count: int, dim: int, logits: Tensor, seed: int = 0, first: float = 1.0
) -> Tensor:
    """The weights w [count] with which L(batch) is the mean of wₖ L(part k), for equal parts of it along `dim`.

    All are 1 in a plain mean; where targets are ignored, or classes weighed, it is how much of the weight a part has
    times `count`, and 0 of one that is ignored altogether; `count` of a sum. They are told from gradients at outputs
    drawn at random, in the form of a part's `logits`, as they depend on the targets alone: ∂L / ∂outputsₖ is wₖ / count
    of ∂Lₖ / ∂outputsₖ; those of the first part are `first` times as large. Raises ModelError for a loss that no weights
    make of its parts, such as one that compares examples of the batch with each other.

    >>> logits, targets = torch.zeros(2, 5), torch.tensor([3, -100, 1, 0])
    >>> part_weights(F.cross_entropy, targets, 2, 0, logits)
    tensor([0.6667, 1.3333])
    """
    if count == 1 or _counts_alike(criterion, targets):
        return torch.ones(count, device=logits.device)
    parts = targets.chunk(count, dim)
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.rand, logits.shape, generator=generator)
    outputs = [draw().to(logits.device, logits.dtype) for _ in parts]
    outputs[0] *= first
    try:
        whole, joint = _loss_and_slopes(criterion, torch.cat(outputs, dim), targets)
        each = [_loss_and_slopes(criterion, out, y) for out, y in zip(outputs, parts, strict=True)]
    except Exception as error:
        raise ModelError(
            f"How much a part of a batch counts in the loss cannot be told ({in_words(error)}): give a loss that takes "
            "any outputs in the form of the model's, such as torch.nn.functional.cross_entropy."
        ) from error
    if not whole.isfinite():  # nothing in it counts, or it has none at such outputs
        return torch.ones(count, device=logits.device)
    weights = []
    for (loss, alone), slopes in zip(each, joint.chunk(count, dim), strict=True):
        size = alone.square().sum()
        if size > 0 and alone.isfinite().all():
            weights.append((slopes * alone).sum() / size)
        else:  # what is flat here may count elsewhere
            weights.append(torch.full_like(size, 1 / count if loss.isfinite() else 0.0))
    found = torch.stack(weights)
    sums = torch.cat([w * alone.nan_to_num() for w, (_, alone) in zip(found, each, strict=True)], dim)
    value = sum(w * loss.nan_to_num() for w, (loss, _) in zip(found, each, strict=True))
    off = max(
        float((sums - joint).norm() / joint.norm().clamp(min=1e-30)),
        float((value - whole).abs() / whole.abs().clamp(min=1e-30)),
    )
    if not off < _NEAR:
        raise _no_sum(count)
    found = found * count
    return torch.where((found - 1).abs() < _EXACT, 1.0, found).to(logits.dtype)


def _no_sum(count: int) -> ModelError:
    return ModelError(
        f"The loss of a batch is not made of the losses of {count} parts of it, as of a loss that compares examples "
        "with each other, weighs them by their places, is a function of a mean, or draws random numbers: give a mean "
        "over examples, which may be weighted by their targets, or take AllReduce()."
    )


def _loss_and_slopes(criterion: Loss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        loss = criterion(leaf, targets)
        (slopes,) = torch.autograd.grad(loss, leaf)
    return loss.detach().double(), slopes.double()


def _counts_alike(criterion: Any, targets: Tensor) -> bool:
    """Whether each of these targets is known to count as much as another one, without a trial."""
    if criterion in (F.cross_entropy, next_token):
        return targets.is_floating_point() or not bool((targets == _IGNORED).any())
    if criterion in _MEANS:
        return True
    if getattr(criterion, "reduction", "mean") != "mean" or getattr(criterion, "weight", None) is not None:
        return False
    if type(criterion) in (nn.CrossEntropyLoss, nn.NLLLoss):
        return targets.is_floating_point() or not bool((targets == criterion.ignore_index).any())
    return type(criterion) in _MEAN_MODULES
