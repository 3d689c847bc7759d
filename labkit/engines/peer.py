"""Peer: one learner as an ordinary model with an ordinary optimiser, in lockstep and on a worker."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.algorithms.base import Batch
from labkit.engines.experiment import Experiment

_EVALUATED_AT_ONCE = 4096


class OnePeer:
    """One peer's model, optimiser and shard size; the losses of its steps are kept until they are reported."""

    def __init__(self, experiment: Experiment, peer: int, device: torch.device) -> None:
        self.model = experiment.fresh_model().to(device).train()
        self.examples: float | Tensor = experiment.examples(peer)
        self._named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._optimizer = experiment.optimizer(list(self._named.values()))
        self._criterion = experiment.loss
        self._losses: list[Tensor] = []

    @property
    def params(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._named.items()}

    @params.setter
    def params(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self._named.items():
                p.copy_(values[name])

    def logits(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.model(inputs)
        return out

    def loss(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        loss = self._criterion(self.logits(inputs), targets)
        self._losses.append(loss.detach())
        return loss

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(loss, list(self._named.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(self._named, gradients, strict=True))

    def apply(self, gradients: dict[str, Tensor]) -> None:
        for name, p in self._named.items():
            p.grad = gradients[name]
        self._optimizer.step()

    def step(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def mean_losses(self) -> tuple[float]:
        """The mean loss of the steps since this was last asked."""
        mean = torch.stack(self._losses).mean().item() if self._losses else float("nan")
        self._losses.clear()
        return (mean,)

    def accuracies(self, inputs: Tensor, targets: Tensor) -> tuple[float]:
        """The share of `targets` [N] that the model gets right."""
        self.model.eval()
        right = 0
        with torch.no_grad():
            for at in torch.arange(len(targets)).split(_EVALUATED_AT_ONCE):  # type: ignore[no-untyped-call]
                right += int((self.logits(inputs[at]).argmax(-1) == targets[at]).sum())
        self.model.train()
        return (right / targets.numel(),)

    def models(self) -> list[nn.Module]:
        """The trained model."""
        return [trained(self.model)]


def trained(model: nn.Module) -> nn.Module:
    """A trained model as it is handed to the user: on the CPU, in evaluation mode, without gradients."""
    model = model.cpu().eval()
    model.zero_grad(set_to_none=True)
    return model
