"""OptimizerStep: how an optimiser takes a step, with loss scaling, clipping and a schedule where they are asked for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from labkit.engines.experiment import Experiment, OptimizerFactory
from labkit.errors import ModelError
from labkit.history.rows import Event
from labkit.text import in_words

_MORE = ("momentum", "weight_decay", "maximize", "differentiable")  # settings with which SGD does more than x − η ∇
_GLOBAL_HOOKS = _global_optimizer_pre_hooks, _global_optimizer_post_hooks
_TINY = 1e-6  # torch.nn.utils.clip_grad_norm_ keeps away from a division by zero with it


class OptimizerStep:
    """The optimiser of one peer, or with `lead` = 1 of K stacked ones, and what goes with it from step to step.

    The schedule moves on after each step that was taken: with loss scaling, a step whose gradients overflowed is not.
    Of clients, who are made anew for each round, it goes on where it stands after as many steps in each round before.
    """

    def __init__(self, experiment: Experiment, peer: int, params: Sequence[Tensor], lead: int) -> None:
        make_optimizer = experiment.optimizer_of(peer)
        self.optimizer = _stacked(make_optimizer, params) if lead else make_optimizer(list(params))
        make = experiment.schedule
        self.schedule: LRScheduler | None = None if make is None else make(self.optimizer)
        fp16, device = experiment.precision == "fp16", params[0].device.type
        self.scaler = torch.amp.GradScaler(device) if fp16 else None
        self._params, self._lead, self._clip = list(params), lead, experiment.clip

    @property
    def descent_rate(self) -> float | None:
        """η, where the optimiser's step is x ← x − η ∇ and nothing else, and nobody looks on; None otherwise."""
        optimizer = self.optimizer
        group = optimizer.param_groups[0]
        if type(optimizer) is not torch.optim.SGD or len(optimizer.param_groups) > 1 or "step" in vars(optimizer):
            return None
        watched = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks, *_GLOBAL_HOOKS
        return None if any(watched) or any(group[setting] for setting in _MORE) else float(group["lr"])

    def scaled(self, x: Tensor) -> Tensor:
        """A loss or gradient times the scale that keeps small gradients of half precision above zero."""
        out: Tensor = x if self.scaler is None else self.scaler.scale(x)
        return out

    def unscaled(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients of a loss that was not scaled, from those of the scaled one."""
        if self.scaler is None:
            return gradients
        factor = 1 / self.scaler.get_scale()
        return [gradient * factor for gradient in gradients]

    def step(self) -> None:
        """One step with the gradients of the parameters, which are those of the scaled loss."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self._clip is not None:
            clip(self._params, self._clip, self._lead)
        if self._step() and self.schedule is not None:
            self._move_on(self.schedule)

    def _step(self) -> bool:
        """Whether the optimiser took the step."""
        if self.scaler is None:
            rate = self.descent_rate
            if rate is None:
                self.optimizer.step()
            else:
                self._descend(rate)
            return True
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return bool(self.scaler.get_scale() >= before)  # it becomes smaller after an overflow, and never else

    def _move_on(self, schedule: LRScheduler) -> None:
        try:
            schedule.step()
        except Exception as error:
            raise ModelError(
                f"{type(schedule).__name__} has no learning rate for step {schedule.last_epoch} ({in_words(error)}): "
                "let it last as many steps as each peer takes."
            ) from error

    @torch.no_grad()
    def _descend(self, rate: float) -> None:
        """The same as torch's step, whose ceremony takes longer than a small model's; on what it was given."""
        for p in self.optimizer.param_groups[0]["params"]:
            if p.grad is not None:
                p.add_(p.grad, alpha=-rate)

    def set_learning_rate(self, rate: float) -> None:
        """Go on with this learning rate; a schedule goes on from it, as if it had led there."""
        for group in self.optimizer.param_groups:
            now = float(group["lr"])
            if "initial_lr" in group:
                group["initial_lr"] = float(group["initial_lr"]) * (rate / now if now else 1.0)
            group["lr"] = rate
        if self.schedule is not None:
            self.schedule.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]

    def go_on(self, pace: Pace, step: int) -> None:
        """Let the schedule go on from step number `step` (from 0) of a run."""
        if self.schedule is not None:
            pace.lend(self.optimizer, self.schedule, step)

    # -- what a checkpoint holds of it

    def state_dict(self) -> dict[str, Any]:
        """The states of optimiser, schedule and scaler, by name."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Go on where these states were taken."""
        for name, part in self._parts().items():
            part.load_state_dict(states[name])

    def _parts(self) -> dict[str, Any]:
        parts = {"optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}
        return {name: part for name, part in parts.items() if part is not None}


def _stacked(make: OptimizerFactory, params: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimiser of K stacked peers, whose groups and settings are those that are made of one peer's parameters.

    So an optimizer function that looks at shapes, as for no weight decay of biases, sees those of the model.
    """
    alone = [p.detach()[0].requires_grad_() for p in params]
    optimizer = make(alone)
    try:
        together = make(list(params))
    except Exception:  # noqa: BLE001  it is not made for such shapes, whatever it says
        together = None
    if together is not None and _groups(together, params) == _groups(optimizer, alone):
        return together
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in alone):
        raise ModelError("The optimizer function puts hooks on the parameters, which stacked peers have not: leave it.")
    stack_of = dict(zip(map(id, alone), params, strict=True))
    for group in optimizer.param_groups:
        group["params"] = [stack_of[id(p)] for p in group["params"]]
    for p in [p for p in alone if p in optimizer.state]:  # some make their state at once, as Adagrad does
        stack, state = stack_of[id(p)], optimizer.state.pop(p)
        optimizer.state[stack] = {
            name: it.expand_as(stack).clone() if isinstance(it, Tensor) and it.dim() and it.shape == p.shape else it
            for name, it in state.items()
        }
    return optimizer


def _groups(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> list[tuple[list[int], str]]:
    """Which parameters an optimiser's groups hold, and with which settings."""
    number = {id(p): k for k, p in enumerate(params)}
    return [
        ([number[id(p)] for p in group["params"]], repr({name: it for name, it in group.items() if name != "params"}))
        for group in optimizer.param_groups
    ]


def clip(params: Sequence[Tensor], most: float, lead: int) -> None:
    """g ← g · min(1, c / ‖g‖) with ‖g‖ over all parameters, of each stacked peer its own (arXiv:1211.5063, Alg. 1).

    Gradients are replaced and not changed, for peers of one process may have received the same tensors.
    """
    with_gradient = [p for p in params if p.grad is not None]
    gradients = [p.grad for p in with_gradient if p.grad is not None]
    if not gradients:
        return
    squares = [g.reshape(*g.shape[:lead], -1).square().sum(-1) for g in gradients]  # [] or [K] each
    factor = (most / (torch.stack(squares).sum(0).sqrt() + _TINY)).clamp(max=1.0)
    for p, g in zip(with_gradient, gradients, strict=True):
        p.grad = g * factor.reshape(*factor.shape, *(1,) * (g.dim() - lead))


class Pace:
    """Where a schedule stands after so many steps, for optimisers that are made in the middle of it."""

    def __init__(self, experiment: Experiment, peer: int) -> None:
        assert experiment.schedule is not None
        self._optimizer = experiment.optimizer_like(peer)
        self._schedule = experiment.schedule(self._optimizer)
        self._step = 0

    def lend(self, optimizer: torch.optim.Optimizer, schedule: LRScheduler, step: int) -> None:
        """Bring a new optimiser of the same groups and its schedule to step number `step`; it never goes back."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this optimiser has not stepped before
            while self._step < step:
                self._schedule.step()
                self._step += 1
        schedule.load_state_dict(copy.deepcopy(self._schedule.state_dict()))
        for own, there in zip(optimizer.param_groups, self._optimizer.param_groups, strict=True):
            own.update((name, value) for name, value in there.items() if name != "params")


class LearningRate:
    """The rate that the user asked for last while a run goes on, for optimisers that are made before or after that.

    `version` counts the rates that were adopted: peers that know an older one take `value` over as their round begins.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        self.version = 0

    def adopt(self, rates: Sequence[float], round: int, seconds: float) -> list[Event]:
        """Hold from round `round` on what was asked for last of `rates`; what is to be told, if that is new."""
        if len(rates) <= self.version:
            return []
        self.value, self.version = rates[-1], len(rates)
        return [Event(round, seconds, "learning rate", {"rate": rates[-1]})]
