"""Stacked: K peers as one, every tensor with a leading peer dimension."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.algorithms.base import Batch
from labkit.engines.evaluation import Evaluation, trained
from labkit.engines.experiment import Experiment
from labkit.engines.parts import Parts, own_part
from labkit.engines.peer import Peers, Place
from labkit.engines.stacked.backward import one_node, way_back
from labkit.engines.stacked.forward import StackedModel
from labkit.engines.stacked.layers import Gradients
from labkit.engines.stacked.losses import cross_entropy_and_back, stacked_counts, stacked_loss, stacked_losses
from labkit.engines.stacked.vmapped import vmapped

_EVALUATED_AT_ONCE = 1 << 22  # inputs × peers in one forward pass of an evaluation


class StackedPeers(Peers):
    """Peers of one kind as one: parameters [K, …], batches [K, B, …], losses [K].

    The backward pass is that of the sum of the K losses, whose gradient with respect to peer k's parameters is that of
    peer k's loss alone. `skeleton` is a module of their kind on their device, which lends its layers and keeps its own
    weights.
    """

    lead = 1

    def __init__(self, experiment: Experiment, ids: Sequence[int], place: Place, skeleton: nn.Module) -> None:
        self.net = skeleton
        self.buffers = _kept(experiment, ids, skeleton, place.device)
        self.ids = torch.tensor(ids)
        self.examples = torch.tensor([float(experiment.examples(k)) for k in ids], device=place.device)
        super().__init__(experiment, ids, place, _start(experiment, ids, place))
        if experiment.split:
            self.parts = Parts(skeleton, _run_stacked)
        self._forward = StackedModel(skeleton, [*self.named, *self.buffers])
        self._mean_loss, self._each_loss = stacked_loss(experiment.loss), stacked_losses(experiment.loss)
        self._counts = stacked_counts(experiment.loss)
        self._knows_back = self._forward.known and not self.buffers and self._dtype is None
        # a target that is no class is an error on the CPU, to be told by torch, and ends the process on a GPU
        self._knows_loss = self._knows_back and experiment.loss is F.cross_entropy and place.device.type == "cpu"
        self._active: NDArray[np.bool_] | None = None  # who still has local work to do in this round; None: everybody
        self._worked: list[NDArray[np.bool_] | None] = []  # and who had at each step

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.named | self.buffers

    # -- forward

    def logits(self, inputs: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        if params is None and self._goes_back(inputs):
            with torch.no_grad():
                passed = self._forward.passed(self.named, inputs)
            if passed is not None:
                return one_node(*passed, self.named, lambda params: self._forward(dict(params), inputs))
        rows = len(self)
        if params is not None and not self.buffers:  # what is the same for all is computed once
            rows = max(len(inputs), *(len(p) for p in params.values()))
        named = self.named if params is None else {n: p.expand(rows, *p.shape[1:]) for n, p in params.items()}
        shared = len(inputs) != rows  # one batch for all
        tensors = named | self.buffers
        with self.casting():
            out = self._forward(tensors, inputs[0] if shared else inputs, shared=shared)
        for name in self.buffers:  # those that forward assigned anew
            self.buffers[name] = tensors[name]
        return self._logits_in(out)  # [K, B, C], or [1, B, C]

    def loss(self, batch: Batch, logits: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        loss = self._loss_that_goes_back(*batch) if logits is None and weight is None else None
        if loss is None:
            return super().loss(batch, logits, weight)
        self._record(loss)
        return loss

    def _goes_back(self, inputs: Tensor) -> bool:
        """Whether the model knows the way back from its outputs for these inputs."""
        asked = torch.is_grad_enabled() and not inputs.requires_grad
        return self._knows_back and asked and len(inputs) == len(self)

    def _loss_that_goes_back(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        """The mean losses [K] as `one_node`, if model and loss know the way back."""
        if not self._knows_loss or not self._goes_back(inputs):
            return None
        with torch.no_grad():
            passed = self._forward.passed(self.named, inputs)
            if passed is None or passed[0].dim() != 3 or targets.dim() != 2:  # [K, B, C] and [K, B]
                return None
            logits, logits_back, reads = passed
            try:
                losses, loss_back = cross_entropy_and_back(logits, targets)
            except RuntimeError:  # targets that F.cross_entropy ignores, averages or refuses
                self._knows_loss = False
                return None

        def back(d: Tensor | None) -> Gradients:
            return logits_back(loss_back(d))

        def again(params: Mapping[str, Tensor]) -> Tensor:
            return self._mean_loss(self._forward(dict(params), inputs), targets)

        return one_node(losses, back, [*reads, targets], self.named, again)

    def _record(self, losses: Tensor) -> None:
        super()._record(losses)
        self._worked.append(self._active)

    # -- backward

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        back = way_back(loss, self.named)
        if back is None:
            return super().gradients(loss)
        with torch.no_grad():
            found = back(None)
        self._note_used(set(found))
        return {name: found[name] for name in self.named}

    def step(self, loss: Tensor) -> None:
        back = way_back(loss, self.named)
        if back is None:
            super().step(loss)
            return
        with torch.no_grad():
            found = back(None)
        for name, p in self.named.items():
            p.grad = found[name]
        self.update()

    def update(self) -> None:
        if self._active is None:
            super().update()
            return
        self._taken = self._taken + self._active
        before = [(leaf, leaf.detach().clone()) for leaf in self._rows()]
        self.optimizer_step.step()
        active = torch.from_numpy(self._active).to(self._place.device)
        with torch.no_grad():
            for leaf, old in before:
                leaf.copy_(torch.where(active.reshape(-1, *(1,) * (leaf.dim() - 1)), leaf, old))

    def _rows(self) -> list[Tensor]:
        """Everything that an optimiser's step changes and that has a row for each peer."""
        params = list(self.named.values())
        kept = [value for state in self.optimizer_step.optimizer.state.values() for value in state.values()]
        return params + [it for it in kept if isinstance(it, Tensor) and it.dim() and len(it) == len(self)]

    # -- local work

    def local(self, batches: Any, every: int, epochs: int | None = None) -> Iterator[Batch]:
        steps = every if epochs is None else epochs * batches.per_epoch  # [K]
        together = int(np.min(steps))  # steps that everybody takes
        batches.deal_ahead(together)
        try:
            for _ in range(together):
                yield next(batches)
            for step in range(together, int(np.max(steps))):
                self._active = np.greater(steps, step)
                yield batches.deal(self._active)
        finally:
            self._active = None

    def local_steps(self, every: int, epochs: int | None = None) -> float | Tensor:
        passes = [float(every if epochs is None else epochs * self._experiment.per_epoch(k)) for k in self.members]
        return torch.tensor(passes, device=self._place.device)

    @property
    def steps(self) -> Tensor:
        everybody = np.ones(len(self), dtype=np.int64)
        return torch.from_numpy(sum((everybody if w is None else w for w in self._worked), 0 * everybody))

    def mean_losses(self) -> tuple[float, ...]:
        if not self._losses:
            return (float("nan"),) * len(self)
        losses = torch.stack(self._losses)  # [steps, K]
        if any(worked is not None for worked in self._worked):
            everybody = np.ones(len(self), dtype=bool)
            stacked = np.stack([everybody if who is None else who for who in self._worked])
            worked = torch.from_numpy(stacked).to(losses.device)
            means = losses.masked_fill(~worked, 0.0).sum(0) / worked.sum(0)
        else:
            means = losses.mean(0)
        self._losses.clear()
        self._worked.clear()
        return tuple(means.tolist())

    # -- results

    def _tested_at_once(self, evaluation: Evaluation) -> int:
        return max(1, _EVALUATED_AT_ONCE // (len(self) * max(1, evaluation.inputs[0].numel())))

    def copy(self, k: int = 0) -> nn.Module:
        model = self._experiment.fresh_model(self.members[k])
        named = dict(model.named_parameters()) | dict(model.named_buffers())
        with torch.no_grad():
            for name, stack in (self.named | self.buffers).items():
                named[name].copy_(stack[k])
        return model

    def model(self, k: int = 0) -> nn.Module:
        return trained(self.copy(k))


def _run_stacked(module: nn.Module, params: dict[str, Tensor], x: Tensor) -> Any:
    """What K peers' layers make of inputs [K, …], or of [1, …] that are the same for all."""
    rows = max([len(x), *map(len, params.values())])
    own = {name: p.expand(rows, *p.shape[1:]) for name, p in params.items()}
    return vmapped(module, own, x.expand(rows, *x.shape[1:]))[0]


def _start(experiment: Experiment, ids: Sequence[int], place: Place) -> dict[str, Tensor]:
    """The parameters [K, …] that the peers start from: what all share, or each its own model's."""
    if experiment.split:
        parts = [own_part(experiment, experiment.model_of(k), k) for k in ids]
        return {
            n: torch.stack([part[n].detach() for part in parts]).to(place.device).requires_grad_() for n in parts[0]
        }
    common: Any = place.shared_state.values.get("params")
    if common is not None:
        return {n: p.expand(len(ids), *p.shape).clone().requires_grad_() for n, p in common.items()}
    each = [dict(experiment.model_of(k).named_parameters()) for k in ids]
    return {
        name: torch.stack([own[name].detach() for own in each]).to(place.device).requires_grad_()
        for name, p in each[0].items()
        if p.requires_grad
    }


def _kept(experiment: Experiment, ids: Sequence[int], skeleton: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """What is not trained, [K, …]: running statistics, and where each peer has a model of its own, what is frozen."""
    if experiment.alike:
        return {n: buffer.expand(len(ids), *buffer.shape).clone() for n, buffer in skeleton.named_buffers()}
    own = [
        dict(it.named_buffers()) | {n: p for n, p in it.named_parameters() if not p.requires_grad}
        for it in map(experiment.model_of, ids)
    ]
    return {n: torch.stack([each[n].detach() for each in own]).to(device) for n in own[0]}
