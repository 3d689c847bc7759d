"""Refinements: what may be asked of the optimisers' steps besides the optimiser, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from numbers import Real
from typing import Any

import torch

from labkit.algorithms import Algorithm, AllReduce
from labkit.algorithms.base import asynchronous, central, every
from labkit.algorithms.wrapper import Wrapper
from labkit.engines.experiment import PRECISIONS, OptimizerFactory, Schedule
from labkit.errors import ModelError, SettingError

_ROUNDS = 50


def require_schedule(
    schedule: Schedule | None, optimizers: Sequence[OptimizerFactory], algorithms: Sequence[Algorithm]
) -> None:
    """Raise ModelError or SettingError unless the function makes what moves on step by step."""
    if schedule is None:
        return
    for algorithm in algorithms:
        if asynchronous(algorithm):
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


def require_precision(precision: Any, algorithms: Sequence[Algorithm]) -> str | None:
    """The precision; SettingError for one that autocast does not have, or where steps cannot be left out."""
    if precision is None:
        return None
    if precision not in PRECISIONS:
        raise SettingError(f'precision={precision!r} is not known: give "bf16" or "fp16", or nothing for float32.')
    for algorithm in algorithms if precision == "fp16" else ():
        if asynchronous(algorithm) or isinstance(algorithm, Wrapper):
            raise SettingError(
                f'precision="fp16" leaves out steps whose gradients overflow, and {type(algorithm).__name__} would '
                'send them: use "bf16", which has the range of float32.'
            )
    return str(precision)


def require_clip(clip: Any, algorithms: Sequence[Algorithm]) -> float | None:
    """The largest norm of a gradient; SettingError where it is none, or where no peer takes a step itself."""
    if clip is None:
        return None
    if isinstance(clip, bool) or not isinstance(clip, Real) or not 0 < float(clip) < math.inf:
        raise SettingError(f"clip={clip!r} is no norm of a gradient: give a number above 0, for example clip=1.0.")
    for algorithm in algorithms:
        if central(algorithm):
            raise SettingError(
                f"clip={clip:g} has nothing to clip with {type(algorithm).__name__}, whose peers push gradients and "
                "take no steps: leave it away, or take an algorithm such as AllReduce()."
            )
    return float(clip)


def rounds_of(
    rounds: int | None, epochs: int | None, algorithms: Sequence[Algorithm], shards: Sequence[Sized], batch_size: int
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
    return math.ceil(most / every(algorithms[0]))
