"""Trainable: whether models, optimisers, loss and data fit together, found out before anything runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from labkit.algorithms import Algorithm
from labkit.data import Dataset
from labkit.engines.experiment import Loss, OptimizerFactory
from labkit.engines.stacked import require_elementwise
from labkit.errors import ModelError

_SHOWN = 120  # characters of torch's own words


def require_trainable(models: Sequence[nn.Module], optimizers: Sequence[OptimizerFactory], stacked: bool) -> None:
    """Every model has something to train, and every optimiser takes it."""
    for module in models:
        if not any(p.requires_grad for p in module.parameters()):
            raise ModelError(
                f"{type(module).__name__} has no parameters to train: add a layer that has weights, or set "
                "requires_grad=True on those you froze."
            )
    some = next(p for p in models[0].parameters() if p.requires_grad)
    for optimizer in optimizers:
        tried = optimizer([torch.zeros_like(some, requires_grad=True)]) if callable(optimizer) else None
        if not isinstance(tried, torch.optim.Optimizer):
            made = f"made a {type(tried).__name__}" if callable(optimizer) else f"is a {type(optimizer).__name__}"
            raise ModelError(
                f"optimizer {made}: give a function of the parameters that makes a torch "
                "optimiser, for example functools.partial(torch.optim.SGD, lr=0.1)."
            )
        if stacked:
            require_elementwise(tried)


def require_no_statistics(models: Sequence[nn.Module]) -> None:
    """Raise ModelError for layers whose running statistics clients or asynchronous peers would lose between rounds."""
    for model in models:
        for name, layer in model.named_modules():
            if getattr(layer, "track_running_stats", False) and hasattr(layer, "running_mean"):
                raise ModelError(
                    f"Layer {name!r} ({type(layer).__name__}) keeps running statistics, which a server's clients and "
                    "asynchronous peers lose between two rounds: use GroupNorm or LayerNorm."
                )


def require_apart(models: Sequence[nn.Module], algorithm: Algorithm) -> None:
    """Raise ModelError where peers that are to start from weights of their own have one module in common."""
    if len({id(model) for model in models}) < len(models):
        raise ModelError(
            f"{type(algorithm).__name__} wants every peer to start from weights of its own, and several peers were "
            "given one module: give a function that makes one, such as lambda: nn.Linear(64, 10)."
        )


def require_fit(model: nn.Module, dataset: Dataset, loss: Loss) -> None:
    """Raise ModelError unless the model takes the data, and the loss what comes out of it; a copy tries an example.

    It is the example with the largest class number, for which a model may have no output.
    """
    if not callable(loss):
        raise ModelError(f"loss is a {type(loss).__name__}: give a function of outputs and targets.")
    inputs, targets = dataset.trial()  # a batch of one is not for every layer
    trial = copy.deepcopy(model).cpu().train()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            loss(trial(inputs), targets)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        said = str(error).strip().splitlines()[0].rstrip(".")[:_SHOWN] if str(error).strip() else type(error).__name__
        numbers = "targets" if targets.is_floating_point() else f"class numbers up to {int(targets.max())}"
        raise ModelError(
            f"{type(model).__name__} and the loss do not fit {dataset.name} ({said}): let the model take inputs of "
            f"shape {tuple(inputs.shape[1:])}, and the loss its outputs beside {numbers}."
        ) from error
