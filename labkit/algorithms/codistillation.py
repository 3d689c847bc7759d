"""Codistillation: peers teach each other by copies of their models that may be old."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.predictions import cross_entropy, probabilities
from labkit.checks import number, whole
from labkit.exchange import Kind, Permute


@dataclass(frozen=True)
class Codistillation:
    """ℓᵢ + λ CE(p_teacher, pᵢ), the teacher being a neighbour as it was up to H steps ago  (arXiv:1804.03235, Alg. 1).

    `weight` is λ; every H = `every` steps peers pass on their parameters around a ring, to one student each: with two
    peers that is the paper's setting, with more its mean over all others' predictions would cost n−1 copies. The first
    `warmup` rounds nobody teaches, for there is nothing to learn from beginners (the paper's burn-in). What is sent are
    the trained parameters: a teacher runs, in evaluation mode, on its student's frozen ones and buffers.
    Raises SettingError for settings out of range, and for outputs that are no scores of classes.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, Codistillation(every=10), peers=2, rounds=10).result()
    History: Codistillation, 2 peers, after 10 rounds test accuracy 8...%, 0.02 MB sent per peer
    """

    starts_apart: ClassVar[bool] = True
    class_scores: ClassVar[bool] = True

    means_of: ClassVar[tuple[Kind, ...]] = ()

    every: int = 10
    weight: float = 1.0
    warmup: int = 1

    def __post_init__(self) -> None:
        whole(self.every, "every")
        number(self.weight, "weight")
        whole(self.warmup, "warmup", least=0)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        teacher = (yield Permute(peer.params)) if peer.number > self.warmup else None
        for inputs, targets in islice(batches, self.every):
            logits = peer.logits(inputs)  # [B, C]
            loss = peer.loss((inputs, targets), logits)
            if teacher is not None:
                with peer.evaluating():
                    taught = probabilities(peer, peer.logits(inputs, teacher))
                loss = loss + self.weight * cross_entropy(peer, taught, logits)
            peer.step(loss)
