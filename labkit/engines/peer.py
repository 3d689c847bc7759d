"""Peers: what one learner and a stack of them have in common, and one learner as an ordinary model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from labkit.algorithms.base import Batch
from labkit.engines.experiment import Experiment

_EVALUATED_AT_ONCE = 4096


class Peers(ABC):
    """Named parameters under one optimiser; the losses of their steps are kept until they are reported.

    Gradients are those of the *sum* of the losses: of one peer that is its loss, of K stacked peers each gets its own.
    """

    examples: float | Tensor

    def __init__(self, experiment: Experiment, named: dict[str, Tensor]) -> None:
        self._named = named
        self._optimizer = experiment.optimizer(list(named.values()))
        self._criterion = experiment.loss
        self._losses: list[Tensor] = []

    @property
    def params(self) -> dict[str, Tensor]:
        """The trainable parameters by name; assigning copies the new values in."""
        return {name: p.detach() for name, p in self._named.items()}

    @params.setter
    def params(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self._named.items():
                p.copy_(values[name])

    @abstractmethod
    def logits(self, inputs: Tensor) -> Tensor:
        """The outputs of the model, [B, C] or [K, B, C]."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of the batch, or one of each peer [K]."""

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """∇loss by parameter name; zero where a parameter had no part in it."""
        named = self._named
        found = torch.autograd.grad(loss.sum(), list(named.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(named, found, strict=True))

    def apply(self, gradients: dict[str, Tensor]) -> None:
        """One step of the optimiser with these gradients."""
        for name, p in self._named.items():
            p.grad = gradients[name]
        self._optimizer.step()

    def step(self, loss: Tensor) -> None:
        """One step of the optimiser on this loss."""
        self._optimizer.zero_grad()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    @property
    def steps(self) -> int:
        """Local steps since the losses were last asked for."""
        return len(self._losses)

    def mean_losses(self) -> tuple[float, ...]:
        """Each peer's mean loss over the steps since this was last asked; NaN where it took none."""
        if not self._losses:
            return (math.nan,) * len(self)
        means = torch.stack(self._losses).mean(0).reshape(-1).tolist()
        self._losses.clear()
        return tuple(means)

    @abstractmethod
    def accuracies(self, inputs: Tensor, targets: Tensor) -> tuple[float, ...]:
        """Each peer's share of `targets` [N] that it gets right."""

    @abstractmethod
    def models(self) -> list[nn.Module]:
        """One trained model per peer."""

    @abstractmethod
    def __len__(self) -> int: ...


class OnePeer(Peers):
    """One peer as an ordinary model with an ordinary optimiser, in lockstep and on a worker."""

    def __init__(self, experiment: Experiment, peer: int, device: torch.device) -> None:
        self.model = experiment.fresh_model().to(device).train()
        self.examples = experiment.examples(peer)
        super().__init__(experiment, {name: p for name, p in self.model.named_parameters() if p.requires_grad})

    def logits(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.model(inputs)
        return out

    def loss(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        loss = self._criterion(self.logits(inputs), targets)
        self._losses.append(loss.detach())
        return loss

    def accuracies(self, inputs: Tensor, targets: Tensor) -> tuple[float, ...]:
        self.model.eval()
        right = 0
        with torch.no_grad():
            for at in torch.arange(len(targets)).split(_EVALUATED_AT_ONCE):  # type: ignore[no-untyped-call]
                right += int((self.logits(inputs[at]).argmax(-1) == targets[at]).sum())
        self.model.train()
        return (right / targets.numel(),)

    def models(self) -> list[nn.Module]:
        return [trained(self.model)]

    def __len__(self) -> int:
        return 1


def trained(model: nn.Module) -> nn.Module:
    """A trained model as it is handed to the user: on the CPU, in evaluation mode, without gradients."""
    model = model.cpu().eval()
    model.zero_grad(set_to_none=True)
    return model
