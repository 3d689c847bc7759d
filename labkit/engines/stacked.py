"""Stacked: K peers as one, every tensor with a leading peer dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from labkit.algorithms.base import Batch
from labkit.engines.experiment import Experiment
from labkit.engines.peer import Peers, trained
from labkit.errors import ModelError

# Their update of one number looks at that number's own history only, so K peers stacked are K optimisers.
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.ASGD,
)
_EVALUATED_AT_ONCE = 1 << 22  # inputs × peers in one forward pass of an evaluation


class StackedPeers(Peers):
    """The peers of `block` as one: parameters [K, …], batches [K, B, …], losses [K].

    The forward pass is vmap(functional_call); the backward pass is autograd on the sum of the K losses, whose
    gradient with respect to peer k's parameters is that of peer k's loss alone.
    """

    def __init__(self, experiment: Experiment, block: range, device: torch.device) -> None:
        self._experiment, self._peers = experiment, len(block)
        self.model = experiment.fresh_model().to(device).train()
        require_stackable(self.model)
        self.examples = torch.tensor([float(experiment.examples(k)) for k in block], device=device)
        named = {
            name: p.detach().expand(len(block), *p.shape).clone().requires_grad_()  # [K, …]
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }
        super().__init__(experiment, named)
        require_elementwise(self._optimizer)

    def logits(self, inputs: Tensor) -> Tensor:
        def one(params: dict[str, Tensor], x: Tensor) -> Any:
            return functional_call(self.model, params, (x,))

        out: Tensor = vmap(one, randomness="different")(self._named, inputs)  # [K, B, C]
        return out

    def loss(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        losses: Tensor = vmap(self._criterion)(self.logits(inputs), targets)  # [K]
        self._losses.append(losses.detach())
        return losses

    def accuracies(self, inputs: Tensor, targets: Tensor) -> tuple[float, ...]:
        def one(params: dict[str, Tensor], x: Tensor) -> Any:
            return functional_call(self.model, params, (x,)).argmax(-1)

        self.model.eval()
        right = torch.zeros(len(self), device=inputs.device)
        size = max(1, _EVALUATED_AT_ONCE // (len(self) * max(1, inputs[0].numel())))
        with torch.no_grad():
            for x, y in zip(torch.split(inputs, size), torch.split(targets, size), strict=True):
                right += (vmap(one, in_dims=(0, None))(self._named, x) == y).flatten(1).sum(1)
        self.model.train()
        return tuple((right / targets.numel()).tolist())

    def models(self) -> list[nn.Module]:
        made = []
        for k in range(len(self)):
            model = self._experiment.fresh_model()
            named = dict(model.named_parameters())
            with torch.no_grad():
                for name, p in self._named.items():
                    named[name].copy_(p[k])
            made.append(trained(model))
        return made

    def __len__(self) -> int:
        return self._peers


def require_stackable(model: nn.Module) -> None:
    """Raise ModelError for layers whose running statistics cannot have a peer dimension."""
    for name, layer in model.named_modules():
        if getattr(layer, "track_running_stats", False) and hasattr(layer, "running_mean"):
            raise ModelError(
                f"Layer {name!r} ({type(layer).__name__}) keeps running statistics, which stacked peers would share: "
                "use GroupNorm or LayerNorm, or train with one peer per worker (on=lab)."
            )


def require_elementwise(optimizer: torch.optim.Optimizer) -> None:
    """Raise ModelError for an optimiser that would mix stacked peers."""
    if type(optimizer) not in ELEMENTWISE:
        raise ModelError(
            f"{type(optimizer).__name__} is not known to update each number by itself, so stacked peers would mix: "
            f"use one of {', '.join(o.__name__ for o in ELEMENTWISE)}, or train with one peer per worker (on=lab)."
        )
