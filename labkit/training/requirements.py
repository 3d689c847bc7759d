"""Requirements: whether models, optimisers, loss and data fit together, found out before anything runs."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence, Sized
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from labkit.algorithms import Algorithm, AllReduce
from labkit.algorithms.traits import Traits
from labkit.algorithms.wrapper import Wrapper
from labkit.checks import number
from labkit.engines.experiment import PRECISIONS, Experiment, Loss
from labkit.engines.shared_state import no_common_model
from labkit.errors import ModelError, SettingError
from labkit.exchange import Kind
from labkit.text import a, in_words, some

_ROUNDS = 50  # of a run that says neither how many nor how often it goes through the data


def require_schedule(experiment: Experiment) -> None:
    """Raise ModelError or SettingError unless the function makes what moves on step by step, as often as peers step."""
    schedule, name = experiment.schedule, type(experiment.algorithm).__name__
    if schedule is None:
        return
    if experiment.traits.asynchronous:
        raise SettingError(
            f"{name} is asynchronous, and each of its steps may be a different peer's: leave "
            "schedule away, or take an algorithm with barriers such as AllReduce()."
        )
    for peer in range(len(experiment.optimizers)):
        try:
            made = schedule(experiment.optimizer_like(peer)) if callable(schedule) else schedule
        except Exception as error:
            raise ModelError(
                f"The schedule function fails on an optimiser ({in_words(error)}): give a function of the optimiser "
                "alone, for example functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100)."
            ) from error
        if not isinstance(made, LRScheduler):
            what = f"made {a(type(made).__name__)}" if callable(schedule) else f"is {a(type(schedule).__name__)}"
            raise ModelError(
                f"schedule {what}: give a function of the optimiser that makes a torch schedule, for example "
                "functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100)."
            )
        if isinstance(made, ReduceLROnPlateau):
            raise ModelError(
                "schedule makes a ReduceLROnPlateau, which wants to be told how well it goes: give one that only "
                "counts steps, such as CosineAnnealingLR or StepLR."
            )
        _require_lasting(made, _steps(experiment, peer))


def _require_lasting(schedule: LRScheduler, steps: int) -> None:
    """Raise ModelError where a schedule ends before so many steps; it is used up."""
    schedule.last_epoch = steps - 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no optimiser has stepped before
            schedule.step()
    except Exception as error:
        raise ModelError(
            f"{type(schedule).__name__} ends before the {some(steps, 'step')} that each peer takes with it "
            f"({in_words(error)}): let it last as long, or give fewer rounds."
        ) from error


def _steps(experiment: Experiment, peer: int) -> int:
    """How many steps the peer takes with one schedule, at the least."""
    algorithm = _innermost(experiment.algorithm_of(peer))
    if not type(algorithm).__module__.startswith("labkit."):  # who knows when it steps
        return 1
    each = 1 if isinstance(algorithm, AllReduce) else experiment.local_steps(peer)
    return each * experiment.rounds


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


def require_counted(memory: Any, algorithm: Algorithm, traits: Traits) -> bool:
    """Whether it is counted what peers hold; SettingError where these have no round in which all of it is there."""
    if not isinstance(memory, bool):
        raise SettingError(f"memory={memory!r} is not understood: give True to count what each peer holds.")
    if memory and (traits.asynchronous or traits.participation is not None):
        raise SettingError(
            f"memory=True counts one round of peers that live as long as the run, and those of "
            f"{type(algorithm).__name__} do not, or meet nowhere: leave it away, or take AllReduce()."
        )
    return memory


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


_WRAPPED = {
    "DistributedDataParallel": "the peers average what the algorithm says",
    "FullyShardedDataParallel": "every peer has the whole of it",
    "OptimizedModule": "torch.compile cannot be copied for each peer; on a lab, lk.DDP(compile=True) compiles it there",
}


_SCRIPTED = "copies of it cannot be trained"


def require_module(model: nn.Module) -> None:
    """Raise ModelError for a module without numbers, or that is wrapped in what peers do themselves."""
    for module in model.modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        if reason := _SCRIPTED if scripted else _WRAPPED.get(type(module).__name__):
            raise ModelError(f"The model is wrapped in {type(module).__name__}, and {reason}: give the module inside.")
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise ModelError(
                f"{name!r} of {type(model).__name__} is on the meta device and has no numbers: make the model on the "
                "CPU, or fill it with model.to_empty(device='cpu') and weights of your own."
            )


def require_trainable(models: Sequence[nn.Module], loss: Loss) -> None:
    """Every model has something to train, and there is a loss, which has nothing."""
    for module in models:
        if not any(p.requires_grad for p in module.parameters()):
            raise ModelError(
                f"{type(module).__name__} has no parameters to train: add a layer that has weights, or set "
                "requires_grad=True on those you froze."
            )
        if name := next((name for name, p in module.named_parameters() if p.is_complex()), None):
            raise ModelError(
                f"{name!r} of {type(module).__name__} is complex, and peers exchange real numbers: keep its real and "
                "imaginary parts, as torch.view_as_real gives them, and let forward put them together."
            )
    if not callable(loss) or isinstance(loss, type):
        what = f"the class {loss.__name__}" if isinstance(loss, type) else a(type(loss).__name__)
        raise ModelError(f"loss is {what}: give a function of outputs and targets.")
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise ModelError(
            f"{type(loss).__name__} has parameters of its own, which no peer trains: let the model hold them, and its "
            "forward return what the loss needs of them."
        )


def require_optimizers(experiment: Experiment) -> None:
    """Raise ModelError unless each function makes a torch optimiser that steps the parameters from their gradients."""
    for peer, make in enumerate(experiment.optimizers):
        model, made = type(experiment.model_of(peer)).__name__, None
        try:
            made = experiment.optimizer_like(peer) if callable(make) else None
        except Exception as error:
            raise ModelError(
                f"The optimizer function fails on the parameters of {model} ({in_words(error)}): let it make a torch "
                "optimiser of all of them."
            ) from error
        if not isinstance(made, Optimizer):
            what = f"made {a(type(made).__name__)}" if callable(make) else f"is {a(type(make).__name__)}"
            raise ModelError(
                f"optimizer {what}: give a function of the parameters that makes a torch "
                "optimiser, for example functools.partial(torch.optim.SGD, lr=0.1)."
            )
        closure = inspect.signature(type(made).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ModelError(
                f"{type(made).__name__} wants a closure that computes the loss again and again, and a peer steps from "
                "its gradients: take an optimiser such as SGD or Adam."
            )
        if any(p.numel() and p.stride() != (0,) * p.dim() for group in made.param_groups for p in group["params"]):
            raise ModelError(
                "The optimizer function makes its groups of other tensors than those it is given, so that no peer "
                "would be trained: choose among its argument, which has the order of model.parameters()."
            )


def require_one_model(experiment: Experiment) -> None:
    """Raise ModelError where peers who average gradients would not stay one model, and where clips are of no change.

    Raises ExchangeError for clients of one server that are given several models.
    """
    if experiment.served and not experiment.alike:
        raise no_common_model()
    for algorithm in () if experiment.alike else experiment.algorithms:
        if _exact(algorithm) and Kind.CHANGE in Traits.of(algorithm).kinds:
            raise SettingError(
                f"{type(algorithm).__name__} clips changes of parameters, and the peers start from different weights, "
                "so that their first mean is one of whole parameters: give one model for all."
            )
    averaging = [it for it in experiment.algorithms if Kind.GRADIENT in Traits.of(it).kinds]
    if not averaging:
        return
    kinds = {experiment.training_key(k)[0] for k in range(len(experiment.optimizers))}
    shapes = {tuple((n, p.shape) for n, p in model.named_parameters()) for model in experiment.models}
    if len(kinds) > 1 or (not experiment.alike and len(shapes) == 1):  # others cannot exchange anything
        what = "are given different optimisers" if experiment.alike else "start from different weights"
        raise ModelError(
            f"{type(_innermost(averaging[0])).__name__}'s peers average gradients, which is right for equal weights "
            f"alone, and they {what}: give one {'optimizer' if experiment.alike else 'model'} for all, or take an "
            "algorithm that averages parameters, such as LocalSGD(1)."
        )


def _exact(algorithm: Algorithm) -> bool:
    """Whether a wrapper promises something of each peer's own change."""
    return isinstance(algorithm, Wrapper) and (algorithm.exact or _exact(algorithm.algorithm))


def _innermost(algorithm: Algorithm) -> Algorithm:
    return algorithm.innermost if isinstance(algorithm, Wrapper) else algorithm


def require_apart(models: Sequence[nn.Module], algorithm: Algorithm) -> None:
    """Raise ModelError where peers that are to start from weights of their own have one module in common."""
    if len({id(model) for model in models}) < len(models):
        raise ModelError(
            f"{type(algorithm).__name__} wants every peer to start from weights of its own, and several peers were "
            "given one module: give a function that makes one, such as lambda: nn.Linear(64, 10)."
        )
