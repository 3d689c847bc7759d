"""Requirements: whether models, optimisers, loss and data fit together, found out before anything runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence, Sized
from typing import Any

import torch
from torch import nn

from labkit.algorithms import Algorithm, AllReduce
from labkit.algorithms.traits import Traits
from labkit.algorithms.wrapper import Wrapper
from labkit.checks import number
from labkit.data import Dataset
from labkit.engines.experiment import PRECISIONS, Loss, OptimizerFactory, Schedule
from labkit.engines.stacked.peers import require_elementwise
from labkit.errors import ModelError, SettingError
from labkit.text import in_words

_ROUNDS = 50  # of a run that says neither how many nor how often it goes through the data


def require_schedule(
    schedule: Schedule | None, optimizers: Sequence[OptimizerFactory], algorithm: Algorithm, traits: Traits
) -> None:
    """Raise ModelError or SettingError unless the function makes what moves on step by step."""
    if schedule is None:
        return
    if traits.asynchronous:
        raise SettingError(
            f"{type(algorithm).__name__} is asynchronous, and each of its steps may be a different peer's: leave "
            "schedule away, or take an algorithm with barriers such as AllReduce()."
        )
    for optimizer in optimizers:
        made = schedule(optimizer([torch.zeros(1, requires_grad=True)])) if callable(schedule) else schedule
        if not isinstance(made, torch.optim.lr_scheduler.LRScheduler):
            what = f"made a {type(made).__name__}" if callable(schedule) else f"is a {type(schedule).__name__}"
            raise ModelError(
                f"schedule {what}: give a function of the optimiser that makes a torch schedule, for example "
                "functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100)."
            )
        if isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ModelError(
                "schedule makes a ReduceLROnPlateau, which wants to be told how well it goes: give one that only "
                "counts steps, such as CosineAnnealingLR or StepLR."
            )


def require_precision(precision: Any, algorithms: Sequence[Algorithm], traits: Traits) -> str | None:
    """The precision; SettingError for one that autocast does not have, or where steps cannot be left out."""
    if precision is None:
        return None
    if precision not in PRECISIONS:
        raise SettingError(f'precision={precision!r} is not known: give "bf16" or "fp16", or nothing for float32.')
    for algorithm in algorithms if precision == "fp16" else ():
        if traits.asynchronous or isinstance(algorithm, Wrapper):
            raise SettingError(
                f'precision="fp16" leaves out steps whose gradients overflow, and {type(algorithm).__name__} would '
                'send them: use "bf16", which has the range of float32.'
            )
    return str(precision)


def require_clip(clip: Any, algorithm: Algorithm, traits: Traits) -> float | None:
    """The largest norm of a gradient; SettingError where it is none, or where no peer takes a step itself."""
    if clip is None:
        return None
    norm = number(clip, "clip", above=True)
    if traits.central:
        raise SettingError(
            f"clip={clip:g} has nothing to clip with {type(algorithm).__name__}, whose peers push gradients and "
            "take no steps: leave it away, or take an algorithm such as AllReduce()."
        )
    return norm


def rounds_of(
    rounds: int | None,
    epochs: int | None,
    algorithms: Sequence[Algorithm],
    every: int,
    shards: Sequence[Sized],
    batch_size: int,
) -> int:
    """How many rounds there are: as given, 50 if nothing is, or until nobody has batches of `epochs` passes left.

    Raises SettingError where both are given, or for an algorithm whose peers need batches in every round.
    """
    if epochs is None:
        return _ROUNDS if rounds is None else rounds
    if rounds is not None:
        raise SettingError(f"rounds={rounds} and epochs={epochs} both say how long to train: give one of them.")
    for algorithm in algorithms:
        if not isinstance(algorithm, AllReduce):
            raise SettingError(
                f"epochs={epochs} ends each peer's batches after so many passes over its shard, and "
                f"{type(algorithm).__name__} needs batches in every round: give rounds=… instead, or take AllReduce()."
            )
    most = epochs * math.ceil(max(map(len, shards)) / batch_size)  # batches that any peer has
    return math.ceil(most / every)


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
        said = in_words(error).removeprefix(f"{type(error).__name__}: ")
        numbers = "targets" if targets.is_floating_point() else f"class numbers up to {int(targets.max())}"
        raise ModelError(
            f"{type(model).__name__} and the loss do not fit {dataset.name} ({said}): let the model take inputs of "
            f"shape {tuple(inputs.shape[1:])}, and the loss its outputs beside {numbers}."
        ) from error
