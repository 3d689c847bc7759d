"""Distillation: peers learn from labels and from a teacher that has finished learning."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.predictions import cross_entropy, outputs_of, probabilities
from labkit.checks import number, whole
from labkit.data.inputs import Inputs
from labkit.errors import LabkitError, ModelError
from labkit.text import a, in_words


@dataclass(frozen=True)
class Distillation:
    """(1−λ) ℓ(y, p) + λ T² CE(qᵀ, pᵀ), with pᵀ = softmax(logits / T), qᵀ the teacher's  (arXiv:1503.02531, Sec. 2).

    `weight` is λ, `temperature` is T; T² keeps the soft targets' gradients as large as the labels' whatever T. The
    `teacher` is a trained module, which is copied and stays as it is. Nothing is sent.
    Raises ModelError for a teacher that is no module, or whose outputs on the data are not like the models', and
    SettingError for settings out of range, and for outputs that are no scores of classes.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> teacher = lk.train(model, digits, peers=1, rounds=200).result().models[0]
    >>> lk.train(model, digits, Distillation(teacher), peers=2, rounds=100).result()
    History: Distillation, 2 peers, after 100 rounds test accuracy 8...%, 0.00 MB sent per peer
    """

    class_scores: ClassVar[bool] = True

    teacher: nn.Module = field(repr=False)
    temperature: float = 4.0
    weight: float = 0.5
    every: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, nn.Module):
            raise ModelError(
                f"teacher is {a(type(self.teacher).__name__)}: give a trained module, such as run.result().models[0]."
            )
        number(self.temperature, "temperature", above=True)
        number(self.weight, "weight", most=1)
        whole(self.every, "every")
        object.__setattr__(self, "teacher", copy.deepcopy(self.teacher).eval())

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        for inputs, targets in islice(batches, self.every):
            logits, t = peer.logits(inputs), self.temperature
            soft = probabilities(peer, self._taught(inputs, peer) / t)
            mimicry = t * t * cross_entropy(peer, soft, logits / t)
            loss = peer.loss((inputs, targets), logits)
            peer.step((1 - self.weight) * loss + self.weight * mimicry)
        yield from ()  # no message: the teacher is everybody's from the start

    @torch.no_grad()
    def _taught(self, inputs: Tensor, peer: Peer) -> Tensor:
        """The teacher's logits [..., B, C] for inputs [..., B, …], where … before B is the dimension of peers."""
        lead = peer.ids.dim()
        if not lead:
            return self._outputs(inputs)
        logits = self._outputs(inputs.flatten(0, lead))
        return logits.reshape(*inputs.shape[: lead + 1], *logits.shape[1:])

    def _outputs(self, inputs: Any) -> Tensor:
        """What the teacher makes of inputs [B, …], or of several."""
        several = isinstance(inputs, Inputs)
        teacher = self.teacher.to(inputs.tensors[0].device if several else inputs.device)
        return outputs_of(teacher(*inputs.args, **inputs.kwargs) if several else teacher(inputs), "The teacher")

    @torch.no_grad()
    def try_on(self, inputs: Any, outputs: Tensor) -> None:
        """Refuse a teacher that does not take these inputs, or gives other outputs than a model that learns from it."""
        try:
            taught = self._outputs(inputs)
        except LabkitError:
            raise
        except Exception as error:
            raise ModelError(
                f"The teacher, {type(self.teacher).__name__}, does not take the data's inputs ({in_words(error)}): "
                "give one that was trained on such data."
            ) from error
        if taught.shape != outputs.shape:
            raise ModelError(
                f"The teacher's outputs are of shape {tuple(taught.shape)}, and the model's of {tuple(outputs.shape)}: "
                "give a teacher of the same classes."
            )
