"""Peers: what one learner and a stack of them have in common, and one learner as an ordinary model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from labkit.algorithms.base import Batch
from labkit.algorithms.predictions import outputs_of
from labkit.engines.evaluation import AT_ONCE, Evaluation, Scores, trained
from labkit.engines.example_losses import counted, example_losses, one_after_the_other
from labkit.engines.experiment import PRECISIONS, Experiment, Loss
from labkit.engines.modules import called, evaluation_mode, training_mode
from labkit.engines.optimizer_step import LearningRate, OptimizerStep, Pace
from labkit.engines.part_weights import part_weights
from labkit.engines.parts import PartHolder, Parts, dense, own_part
from labkit.engines.round_checks import logged, require_shapes
from labkit.engines.shared_state import SharedState, SharedView, State
from labkit.tree import Tree

Exchanged = Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class Place:
    """Where peers live: on which device, with what they share, and the archive of a server's clients.

    `rate` is the learning rate that the user asks for while they train.
    """

    device: torch.device
    shared_state: SharedState
    archive: dict[int, dict[str, Any]] | None = None
    rate: LearningRate = field(default_factory=LearningRate)
    paces: dict[Any, Pace] = field(default_factory=dict)  # of clients, by their kind and steps

    @classmethod
    def of(cls, experiment: Experiment, device: torch.device, archived: bool) -> Place:
        """The place before the first round; peers share the parameters of the model that all of them start from."""
        common = experiment.alike and not experiment.split
        named = experiment.models[0].named_parameters() if common else ()
        params: Tree = {name: p.detach().to(device, copy=True) for name, p in named if p.requires_grad}
        return cls(device, SharedState({"params": params} if common else {}), {} if archived else None)


class Peers(PartHolder, ABC):
    """Named parameters under one optimiser; the losses of their steps are kept until they are reported.

    To algorithms they are a `labkit.algorithms.base.Peer`, which says what its members mean.

    Gradients are those of the *sum* of the losses: of one peer that is its loss, of K stacked peers each gets its own.
    """

    net: nn.Module
    lead: int  # leading dimensions: 0 for one peer, 1 for a stack
    ids: Tensor
    examples: float | Tensor
    shared: SharedView
    _mean_loss: Loss
    _each_loss: Loss  # of each example
    _counts: Loss  # which examples have a part in the mean

    def __init__(self, experiment: Experiment, ids: Sequence[int], place: Place, named: dict[str, Tensor]) -> None:
        self.members = tuple(ids)
        self.peers, self.present, self.seed = experiment.peers, experiment.present, experiment.seed
        self.epochs, self.batch_size = experiment.epochs, experiment.batch_size
        self.number, self.rated = 0, 0
        self._counted: float = 0
        self._experiment, self._place = experiment, place
        self.named = named
        self.optimizer_step = OptimizerStep(experiment, ids[0], list(named.values()), self.lead)
        self._dtype = None if experiment.precision is None else PRECISIONS[experiment.precision]
        self._losses: list[Tensor] = []
        self._taken: Any = 0  # optimiser steps in this round: of all, or where these differ each peer's [K]
        self.logged: dict[str, Tensor] = {}
        self._returned: tuple[Tensor, Any] | None = None  # logits, and what forward returned with them around
        self._used: set[str] | None = None  # the parameters that have a part in the loss; None: all, as far as is known
        self._applied = True  # gradients were asked for no more since the last step
        self._public: Iterator[Tensor] | None = None
        self._sparse = any(getattr(it, "sparse", False) for it in experiment.model_of(ids[0]).modules())
        self.state = State(self.lead, self.members, place.archive)

    def begin(self, number: int) -> None:
        """Get ready for round `number`."""
        self.number, self._counted, self._taken, self.logged = number, 0, 0, {}
        if self._place.archive is not None and self._experiment.schedule is not None:
            self._go_on(self.members[0])
        self.shared = self._place.shared_state.view(self.lead)
        for p in self.named.values() if self._experiment.split else ():
            p.grad = None  # of the last step, which would take memory until the next one
        self._public = None
        if self.rated < self._place.rate.version and self._place.rate.value is not None:
            self.rated, self.learning_rate = self._place.rate.version, self._place.rate.value

    def _go_on(self, client: int) -> None:
        """A client's schedule goes on where the rounds before have brought it."""
        each = self._experiment.local_steps(client)
        like = self._experiment.kind(client), each
        if like not in self._place.paces:
            self._place.paces[like] = Pace(self._experiment, client)
        self.optimizer_step.go_on(self._place.paces[like], (self.number - 1) * each)

    @property
    def learning_rate(self) -> float:
        """The optimiser's, as it is now; a schedule goes on from what is assigned."""
        return float(self.optimizer_step.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self.optimizer_step.set_learning_rate(rate)

    @property
    def optimizer_settings(self) -> Mapping[str, Any]:
        return self.optimizer_step.optimizer.param_groups[0]

    @property
    def exchanged(self) -> Exchanged | None:
        """What tells how many seconds ago a backward pass had computed all, and the exchange inside of it ended.

        None where no exchange goes on inside of it.
        """
        return None

    @property
    def working(self) -> int:
        return self._experiment.working(self.number)

    # -- parameters

    @property
    def params(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named.items()}

    @params.setter
    def params(self, values: dict[str, Tensor]) -> None:
        require_shapes("peer.params", values, self.named, self.lead)
        with torch.no_grad():
            for name, p in self.named.items():
                p.copy_(values[name])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that training changes in the model: trainable parameters and buffers, by name."""
        return self.named | (self._buffers if self._experiment.split else dict(self.net.named_buffers()))

    @cached_property
    def _buffers(self) -> dict[str, Tensor]:
        """Those of peers with parts, which none changes: to look through the whole model's layers takes its time."""
        return dict(self.net.named_buffers())

    # -- forward

    @property
    def classes(self) -> int | None:
        return self._experiment.found.classes

    @property
    def labels(self) -> bool:
        return self._experiment.found.labels

    @abstractmethod
    def logits(self, inputs: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        """The model's outputs, [B, C] (of sequences [B, T, C]) or [K, B, C], with the given parameters or its own."""

    def loss(self, batch: Batch, logits: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        if logits is not None and weight is not None and not weight.any():  # the mean of nothing is no number
            loss = 0.0 * logits.flatten(self.lead).sum(-1)
        else:
            loss = self._compared(self._mean_loss, batch, logits)
            if weight is not None:
                loss = torch.where(weight == 0, 0.0, loss) * weight
        self._record(loss)
        return loss

    def weights(self, targets: Tensor, count: int, dim: int, logits: Tensor) -> Tensor:
        own = partial(part_weights, self._experiment.loss)
        if not self.lead:
            return own(targets, count, dim, logits)
        return torch.stack([own(y, count, dim, logits[0]) for y in targets])

    def losses(self, batch: Batch, logits: Tensor | None = None) -> Tensor:
        losses = self._compared(self._each_loss, batch, logits)
        self._record(losses.mean(-1))
        return losses

    def counted(self, batch: Batch, logits: Tensor) -> Tensor:
        return self._compared(self._counts, batch, logits).detach()

    def _compared(self, loss: Loss, batch: Batch, logits: Tensor | None) -> Tensor:
        inputs, targets = batch
        logits = self.logits(inputs) if logits is None else logits
        outputs = logits if self._returned is None or self._returned[0] is not logits else self._returned[1]
        with self.casting():
            return loss(outputs, targets)

    def _record(self, losses: Tensor) -> None:
        self._losses.append(losses.detach())

    @property
    def public(self) -> Iterator[Tensor]:
        if self._public is None:
            batches = self._experiment.public_batches(self.number, self._place.device)
            self._public = (x.unsqueeze(0) for x in batches) if self.lead else batches
        return self._public

    def casting(self) -> AbstractContextManager[Any]:
        """While a model trains, its forward pass and its loss are in the precision that was asked for."""
        if self._dtype is None or not self.net.training:
            return nullcontext()
        return torch.autocast(self._place.device.type, self._dtype)

    def _logits_in(self, out: Any) -> Tensor:
        """The logits in what forward returned, which the loss of this batch receives as it is.

        What came out in half precision becomes float32: losses want more digits.
        """
        if self._dtype is not None:
            out = tree_map_only(Tensor, lambda it: it.float() if it.dtype is self._dtype else it, out)
        logits = outputs_of(out)
        self._returned = None if logits is out else (logits, out)
        return logits

    # -- backward

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """∇loss by parameter name; zero where a parameter had no part in it."""
        named = self.named
        scaled = self.optimizer_step.scaled(loss.sum())
        found = torch.autograd.grad(scaled, list(named.values()), allow_unused=True)
        self._note_used({name for name, gradient in zip(named, found, strict=True) if gradient is not None})
        each = [torch.zeros_like(p) if g is None else dense(g) for p, g in zip(named.values(), found, strict=True)]
        return dict(zip(named, self.optimizer_step.unscaled(each), strict=True))

    def _note_used(self, names: set[str]) -> None:
        """These parameters have a part in the loss, besides those of other losses since the last step."""
        self._used = names if self._applied or self._used is None else self._used | names
        self._applied = False

    def apply(self, gradients: dict[str, Tensor]) -> None:
        """One step with these gradients; a parameter without a part in anybody's loss has none, as in `step`."""
        if not isinstance(gradients, dict) or gradients.keys() != self.named.keys():
            require_shapes("peer.apply", gradients, self.named, self.lead)
        known, used = self._experiment.found.unused, self._used  # None where losses go back by other ways
        for name, p in self.named.items():
            gradient = gradients[name]
            if getattr(gradient, "shape", None) != p.shape:
                require_shapes("peer.apply", gradients, self.named, self.lead)
                gradient = gradient.expand_as(p).contiguous()
            idle = name in known if used is None else name not in used
            p.grad = None if idle and not gradient.any() else self.optimizer_step.scaled(gradient)
        self._applied = True
        self.update()

    def step(self, loss: Tensor) -> None:
        for p in self.named.values():
            p.grad = None  # as zero_grad() does, with less ceremony
        self.backward(loss)
        self.update()

    def backward(self, loss: Tensor) -> None:
        self.optimizer_step.scaled(loss.sum()).backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        self._returned = None
        if self._sparse:  # an embedding's gradients, which peers that average have dense
            for p in self.named.values():
                p.grad = None if p.grad is None else dense(p.grad)
        self.optimizer_step.step()
        self._taken += 1

    # -- local work

    @abstractmethod
    def local(self, batches: Any, every: int, epochs: int | None = None) -> Iterator[Batch]:
        """The batches of one round's local work."""

    @abstractmethod
    def local_steps(self, every: int, epochs: int | None = None) -> float | Tensor:
        """How many batches `local` deals, τ."""

    @property
    @abstractmethod
    def steps(self) -> Tensor:
        """Each peer's local steps [K] since the losses were last asked for."""

    def count(self, steps: float) -> None:
        self._counted += steps

    @property
    def taken(self) -> Tensor:
        """How many steps of its optimiser each peer [K] has taken in this round."""
        return torch.as_tensor(self._taken).expand(len(self))

    @property
    def taken_together(self) -> float:
        """The same of all peers here together."""
        return float(self._taken * len(self) if isinstance(self._taken, int) else self._taken.sum())

    def log(self, name: str, value: Any) -> None:
        self.logged[name] = logged(name, value, len(self), self.lead)

    @property
    def work(self) -> Tensor:
        """What takes each peer its time in this round, in steps [K]."""
        holds = self._experiment.traits.holds
        return self.steps * (1 if holds is None else holds.share(self.peers)) + self._counted

    @abstractmethod
    def mean_losses(self) -> tuple[float, ...]:
        """Each peer's mean loss over the steps since this was last asked; NaN where it took none."""

    # -- results

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode and no gradients, for as long as the context lasts."""
        with evaluation_mode(self.net), torch.no_grad():
            yield

    def scores(self, evaluation: Evaluation) -> Scores:
        """What each peer's model scores on the test set, in evaluation mode."""
        with self.evaluating():
            return evaluation.score(self, self.members[0], self._tested_at_once(evaluation))

    def _tested_at_once(self, evaluation: Evaluation) -> int:
        """How many test examples one forward pass takes."""
        return AT_ONCE

    def outputs(self, inputs: Tensor) -> Tensor:
        """Those of inputs [B, …] that are the same for all: [B, …] or [K, B, …]."""
        return self.logits(inputs.unsqueeze(0) if self.lead else inputs)

    def test_loss(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """The loss, [] or [K], of outputs that are not recorded."""
        each = targets.expand(len(outputs), *targets.shape) if self.lead else targets
        return self._compared(self._mean_loss, (outputs, each), outputs)

    @abstractmethod
    def copy(self, k: int) -> nn.Module:
        """A copy of the model of the k-th peer here."""

    @abstractmethod
    def model(self, k: int) -> nn.Module:
        """The trained model of the k-th peer here."""

    def __len__(self) -> int:
        return len(self.members)


class OnePeer(Peers):
    """One peer as an ordinary model with an ordinary optimiser, in lockstep and on a worker."""

    lead = 0

    def __init__(self, experiment: Experiment, peer: int, place: Place) -> None:
        self.net = training_mode(experiment.fresh_model(peer).to(place.device))
        self.ids = torch.tensor(peer)
        trainable: dict[str, Tensor] = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        if experiment.split:
            trainable = self._trained(own_part(experiment, self.net, peer))
            self.parts = Parts(self.net, lambda module, params, x: called(module, params, x)[0])
        super().__init__(experiment, [peer], place, trainable)
        self._mean_loss, self._each_loss = experiment.loss, example_losses(experiment.loss, one_after_the_other)
        self._counts = counted(experiment.loss)

    def _trained(self, part: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that the optimiser steps, for the part of a model that the peer holds."""
        return part

    @property
    def examples(self) -> float:  # type: ignore[override]  # asked for, a stream may not know it
        return float(self._experiment.examples(self.members[0]))

    def logits(self, inputs: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        with self.casting():
            out = self._outputs(inputs) if params is None else called(self.net, params, inputs)[0]
        return self._logits_in(out)

    def _outputs(self, inputs: Tensor) -> Any:
        return self.net(inputs)

    def local(self, batches: Any, every: int, epochs: int | None = None) -> Iterator[Batch]:
        return islice(batches, every if epochs is None else epochs * batches.per_epoch)

    def local_steps(self, every: int, epochs: int | None = None) -> float | Tensor:
        return float(every if epochs is None else epochs * self._experiment.per_epoch(self.members[0]))

    @property
    def steps(self) -> Tensor:
        return torch.tensor([len(self._losses)])

    def mean_losses(self) -> tuple[float, ...]:
        mean = float(torch.stack(self._losses).mean()) if self._losses else float("nan")
        self._losses.clear()
        return (mean,)

    def copy(self, k: int = 0) -> nn.Module:
        model = self._experiment.fresh_model(self.members[0])
        model.load_state_dict(self.net.state_dict())
        return model

    def model(self, k: int = 0) -> nn.Module:
        return trained(self.net)
