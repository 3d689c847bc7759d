"""Distillation: peers learn from labels and from a teacher that has finished learning."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor, nn

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.predictions import cross_entropy, probabilities
from labkit.checks import number, whole
from labkit.errors import ModelError


@dataclass(frozen=True)
class Distillation:
    """(1−λ) ℓ(y, p) + λ T² CE(qᵀ, pᵀ), with pᵀ = softmax(logits / T), qᵀ the teacher's  (arXiv:1503.02531, Sec. 2).

    `weight` is λ, `temperature` is T; T² keeps the soft targets' gradients as large as the labels' whatever T. The
    `teacher` is a trained module, which is copied and stays as it is. Nothing is sent.
    Raises ModelError for a teacher that is no module, SettingError for settings out of range, and for outputs that are
    no scores of classes.

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
                f"teacher is a {type(self.teacher).__name__}: give a trained module, such as run.result().models[0]."
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
        logits: Tensor = self.teacher.to(inputs.device)(inputs.flatten(0, lead))
        return logits.reshape(*inputs.shape[: lead + 1], *logits.shape[1:])
