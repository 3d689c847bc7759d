"""The part that each example has in the mean loss of a batch, whichever way the loss weighs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from labkit.engines.experiment import Loss

together = partial(vmap, randomness="different")  # a function over all examples at once


def one_after_the_other(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function over each example by itself, which may do what vmap cannot."""

    def mapped(*batch: Any) -> Any:
        size = len(batch[-1])
        each = [fn(*tree_map_only(Tensor, itemgetter(k), batch)) for k in range(size)]
        return tree_map(lambda *rows: torch.stack(rows), *each)

    return mapped


def example_losses(criterion: Loss, rows: Callable[..., Any]) -> Loss:
    """What maps outputs [B, …] and targets [B, …] to B · sᵢ ℓᵢ, [B], where the criterion is Σᵢ sᵢ ℓᵢ with Σ sᵢ = 1.

    ℓᵢ is the criterion of a batch of one, sᵢ the share of an example: 1/B in a plain mean, its weight over those of all
    in a weighted one, zero where it is left out. As ∂ criterion / ∂ outputᵢ = sᵢ ∂ℓᵢ / ∂ outputᵢ, the share is what one
    is of the other. `rows` maps a function over examples: `one_after_the_other`, or `together` if all bear that.

    >>> weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]), ignore_index=-1)
    >>> outputs, targets = torch.zeros(3, 2), torch.tensor([0, 1, -1])
    >>> example_losses(weighted, one_after_the_other)(outputs, targets), weighted(outputs, targets)
    (tensor([0.5199, 1.5596, 0.0000]), tensor(0.6931))
    """

    def one(output: Any, target: Tensor) -> Tensor:
        return criterion(tree_map_only(Tensor, lambda it: it.unsqueeze(0), output), target.unsqueeze(0))

    def each(outputs: Any, targets: Tensor) -> Tensor:
        size, fixed = len(targets), tree_map_only(Tensor, Tensor.detach, outputs)
        joint = _flat(grad(criterion)(fixed, targets))
        slopes, plain = rows(grad_and_value(one))(fixed, targets)
        alone = _flat(slopes)
        out = (joint == 0).all(1) & plain.isnan()  # a batch of nothing but what is left out has no mean
        squared = alone.square().sum(1)
        share = torch.where(squared > 0, (joint * alone).sum(1) / squared, 1 / size)
        # those left out borrow the target of one that is not: what they have no part in must be a number all the same
        other = (~out).to(torch.uint8).argmax()
        kept = torch.where(
            out.reshape(-1, *(1,) * (targets.dim() - 1)), targets.index_select(0, other.reshape(1)), targets
        )
        losses: Tensor = rows(one)(outputs, kept)
        return losses * torch.where(out, 0.0, size * share)

    return each


def counted(criterion: Loss) -> Loss:
    """What maps outputs [B, …] and targets [B, …] to which examples have a part in the criterion, [B].

    Those have none, such as the ones with a target to ignore or a class of weight zero, with whose outputs the
    criterion never changes; one that is learnt, and whose loss has come to zero, would count with other outputs.

    >>> hinge = torch.nn.MultiMarginLoss()
    >>> counted(hinge)(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 0]))
    tensor([True, True])
    >>> counted(torch.nn.functional.cross_entropy)(torch.zeros(2, 3), torch.tensor([0, -100]))
    tensor([ True, False])
    """

    def counts(outputs: Any, targets: Tensor) -> Tensor:
        here = tree_map_only(Tensor, Tensor.detach, outputs)
        # other outputs that the criterion takes too, between the least and the most of these
        there = tree_map_only(Tensor, lambda it: it.amin() + it.amax() - it if it.is_floating_point() else it, here)
        here_or_there = [_flat(grad(criterion)(at, targets)) for at in (here, there)]
        return torch.stack([((it != 0) & ~it.isnan()).any(1) for it in here_or_there]).any(0)

    return counts


def _flat(slopes: Any) -> Tensor:
    """The gradients of all outputs of each example in a row, [B, numbers]."""
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in tree_leaves(slopes)], dim=1)
