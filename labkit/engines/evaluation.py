"""Evaluation: what trained models score on test examples, and how the user gets them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from math import inf, isnan
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from labkit.algorithms.predictions import outputs_of
from labkit.data.inputs import Inputs
from labkit.engines.experiment import Experiment, Metric, Models
from labkit.engines.modules import give_originals
from labkit.engines.task import Right, right_of
from labkit.errors import ModelError
from labkit.history.measures import CLIENTS
from labkit.history.rows import Row
from labkit.text import a, in_words

AT_ONCE = 4096  # examples
_KEPT = 1 << 25  # outputs of all test examples that are kept to be looked at together


class Scores(NamedTuple):
    """What tests told of peers: a value for each of them, or one where all have one model."""

    losses: tuple[float, ...] | None
    accuracies: tuple[float, ...] | None
    metrics: dict[str, tuple[float, ...]]

    @classmethod
    def joined(cls, each: Sequence[Scores], order: Tensor | None = None) -> Scores:
        """Those of several groups of peers, one after the other or in this order of all."""

        def together(values: Iterable[Any]) -> tuple[float, ...] | None:
            known = list(values)
            if any(own is None for own in known):
                return None
            row = tuple(chain.from_iterable(known))
            return row if order is None else tuple(row[k] for k in order.tolist())

        names = each[0].metrics
        return cls(
            together(it.losses for it in each),
            together(it.accuracies for it in each),
            {name: together(it.metrics[name] for it in each) or () for name in names},
        )

    def put_into(self, row: Row) -> Row:
        """The row with these."""
        return replace(row, accuracies=self.accuracies, test_losses=self.losses, metrics=self.metrics)


NOTHING = Scores(None, None, {})


class Scored(Protocol):
    """One model, or K stacked ones: `lead` is 0 or 1."""

    lead: int

    def outputs(self, inputs: Tensor) -> Tensor:
        """Those of inputs [B, …] that are the same for all: [B, …] or [K, B, …]."""

    def test_loss(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """The loss, [] or [K], of the outputs that were asked for last, or of others of their kind."""


class Alone:
    """One torch module under test."""

    lead = 0

    def __init__(self, net: nn.Module, loss: Callable[[Any, Tensor], Tensor]) -> None:
        self._net, self._loss = net.eval(), loss
        self._returned: tuple[Tensor, Any] = torch.empty(0), None

    def outputs(self, inputs: Tensor) -> Tensor:
        out = self._net(*inputs.args, **inputs.kwargs) if isinstance(inputs, Inputs) else self._net(inputs)
        self._returned = outputs_of(out), out
        return self._returned[0]

    def test_loss(self, targets: Tensor, outputs: Tensor) -> Tensor:
        last, out = self._returned
        return self._loss(out if last is outputs else outputs, targets)


class Evaluation:
    """How models are tested: on which examples, by which loss and metrics, and what of their outputs is right.

    The test loss is the user's own, in evaluation mode, of the outputs of all test examples together, and where those
    are too many to be kept, or forward returns more than them, the mean over pieces, weighted by their sizes.
    """

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        dataset = experiment.dataset
        self.device = device
        self.inputs, self.targets = dataset.test_x.to(device), dataset.test_y.to(device)
        self._experiment = experiment
        self._forms: dict[torch.Size, tuple[Right | None, bool]] = {}

    def score(self, tested: Scored, peer: int, size: int = AT_ONCE) -> Scores:
        """What models of one form, as peer `peer` has, score on the whole test set, `size` examples at once."""
        return self._score(tested, peer, self.inputs, self.targets, size)

    def alone(self, model: nn.Module, peer: int) -> Scores:
        """What one model, of the form of peer `peer`'s, scores on it."""
        with torch.no_grad():
            return self.score(Alone(model.to(self.device), self._experiment.loss), peer)

    def _score(self, tested: Scored, peer: int, inputs: Tensor, targets: Tensor, size: int) -> Scores:
        lead, kept = tested.lead, []
        right = counted = loss = torch.zeros(())
        for start in range(0, len(targets), size):
            x, y = inputs[start : start + size], targets[start : start + size]
            outputs = tested.outputs(x)
            judge, plain = self._form(peer, outputs.shape[lead + 1 :], x, targets)
            together = plain and outputs.numel() // len(y) * len(targets) <= _KEPT
            if together or self._experiment.metrics:
                kept.append(outputs)
            if not together:
                loss = loss + tested.test_loss(y, outputs) * (len(y) / len(targets))
            if judge is not None:
                found, number = judge(outputs, y, lead)
                right, counted = right + found, counted + number
        outputs = torch.cat(kept, lead) if len(kept) > 1 else outputs
        if together:
            loss = tested.test_loss(targets, outputs)
        accuracies = None if judge is None else _tuple(right.double() / counted)
        return Scores(_tuple(loss), accuracies, self._measured(outputs, targets, lead))

    def clients(self, model_of: Callable[[int], nn.Module], members: Iterable[int]) -> dict[str, tuple[float, ...]]:
        """What each of these peers' models scores on the peer's own test examples, if peers have such."""
        each = []
        for k in members if self._experiment.client_tests else ():
            x, y = (it.to(self.device) for it in self._experiment.dataset.examples(self._experiment.client_tests[k]))
            with torch.no_grad():
                tested = Alone(model_of(k).to(self.device), self._experiment.loss)
                each.append(self._score(tested, k, x, y, AT_ONCE))
        if not each:
            return {}
        every = Scores.joined(each)
        found = dict(zip(CLIENTS, (every.accuracies, every.losses), strict=True))
        found |= {f"client {name}": values for name, values in every.metrics.items()}
        return {name: values for name, values in found.items() if values is not None}

    def agreed(self, outputs: Tensor) -> Scores:
        """What outputs [N, …] of the whole test set score that are no single model's."""
        return self.score(_Given(outputs, self._experiment.loss), 0, len(self.targets))

    def _form(self, peer: int, shape: torch.Size, x: Tensor, targets: Tensor) -> tuple[Right | None, bool]:
        """What is right in outputs of this shape, as peer `peer` gives them; whether forward returns nothing else."""
        if shape not in self._forms:
            net = self._experiment.fresh_model(peer).to(self.device)
            self._forms[shape] = form_of(net, self._experiment.loss, x, targets, shape)[1:]
        return self._forms[shape]

    def _measured(self, outputs: Tensor, targets: Tensor, lead: int) -> dict[str, tuple[float, ...]]:
        each = outputs if lead else outputs.unsqueeze(0)
        return {
            name: tuple(measured(name, fn, own, targets) for own in each)
            for name, fn in self._experiment.metrics.items()
        }


def form_of(
    net: nn.Module, loss: Callable[[Any, Tensor], Tensor], x: Tensor, targets: Tensor, shape: torch.Size | None = None
) -> tuple[torch.Size, Right | None, bool]:
    """The shape of a model's outputs for one example, what is right in them, and whether forward returns nothing else.

    `shape` is that of outputs that peers have agreed on.
    """
    with torch.no_grad(), torch.random.fork_rng():
        out = net.eval()(x[:2])
    logits = outputs_of(out)
    if shape is not None and logits.shape[1:] != shape:
        logits = out = logits.new_zeros(len(logits), *shape)
    right = right_of(logits, targets, loss, lambda other: _put(other, logits, out))
    return logits.shape[1:], right, out is logits


class _Given:
    """Outputs of all test examples, as they are."""

    lead = 0

    def __init__(self, outputs: Tensor, loss: Callable[[Any, Tensor], Tensor]) -> None:
        self._outputs, self._loss = outputs, loss

    def outputs(self, inputs: Tensor) -> Tensor:
        return self._outputs

    def test_loss(self, targets: Tensor, outputs: Tensor) -> Tensor:
        return self._loss(outputs, targets)


def measured(name: str, metric: Metric, outputs: Tensor, targets: Tensor) -> float:
    """A metric of the user's own; ModelError where it fails or gives no number."""
    try:
        value = metric(outputs, targets)
    except Exception as error:
        raise ModelError(
            f"The metric {name!r} failed on outputs of shape {tuple(outputs.shape)} and targets of shape "
            f"{tuple(targets.shape)} ({in_words(error)}): let it take both as tensors and return a number."
        ) from error
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"The metric {name!r} gave {a(type(value).__name__)}, which is no number: let it return one, such as the "
            "mean over all examples."
        ) from error


def _put(other: Tensor, logits: Tensor, out: Any) -> Any:
    """What forward would have returned with other outputs in the place of these."""
    return tree_map_only(Tensor, lambda it: other if it is logits else it, out)


def _tuple(values: Tensor) -> tuple[float, ...]:
    return tuple(values.double().reshape(-1).tolist())


class Best:
    """Of each peer, the model that scored best so far: by test accuracy, or by test loss where there is none."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[float, dict[str, Tensor]]] = {}  # by peer: what it scored, and its parameters

    def note(self, scores: Scores, ids: Sequence[int], model_of: Callable[[int], nn.Module]) -> None:
        """Keep the models of those of the peers `ids` that are better than ever; one score may be that of all."""
        values = scores.accuracies or tuple(-loss for loss in scores.losses or ())
        for k, value in zip(ids, values * len(ids) if len(values) == 1 else values, strict=True):
            value = -inf if isnan(value) else value
            if k not in self.kept or value > self.kept[k][0]:
                state = model_of(k).state_dict()
                self.kept[k] = value, {name: it.detach().to("cpu", copy=True) for name, it in state.items()}

    @property
    def states(self) -> list[dict[str, Tensor]]:
        """The parameters that were kept, in the order of the peers."""
        return [state for _, (_, state) in sorted(self.kept.items())]


def rebuilt(experiment: Experiment, states: Sequence[dict[str, Any]]) -> Models:
    """Trained models with these parameters, one for each peer, or one for all."""

    def build(peer: int) -> nn.Module:
        model = experiment.fresh_model(peer)
        model.load_state_dict(states[peer])
        return trained(model)

    return Models(len(states), build)


def trained(model: nn.Module) -> nn.Module:
    """A trained model as it is handed to the user: on the CPU, in evaluation mode, without gradients."""
    model = give_originals(model).cpu().eval()
    model.zero_grad(set_to_none=True)
    return model
