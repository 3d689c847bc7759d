"""DiLoCo: local SGD whose average is taken for a gradient, on which an outer optimiser steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch

from labkit import tree
from labkit.algorithms.base import Batch, Peer, Round
from labkit.checks import number, whole
from labkit.exchange import Kind, Mean


@dataclass(frozen=True)
class DiLoCo:
    """Δ = (1/n) Σᵢ (x − xᵢ) after H inner steps, then x ← OuterOpt(x, Δ)  (Douillard et al., arXiv:2311.08105, Alg. 1).

    The inner optimiser is the run's (AdamW in the paper) and goes on from round to round; the outer one is SGD with
    Nesterov momentum as torch has it: v ← μ v + Δ, x ← x − η (Δ + μ v). `every` is H, η is `outer_lr`, μ is `momentum`;
    without `nesterov` x ← x − η v. With η = 1 and μ = 0 it is LocalSGD. Raises SettingError for settings out of range.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, DiLoCo(every=10), peers=4, rounds=10).result()
    History: DiLoCo, 4 peers, after 10 rounds test accuracy 9...%, 0.04 MB sent per peer
    """

    means_of: ClassVar[tuple[Kind, ...]] = (Kind.CHANGE,)

    every: int = 50
    outer_lr: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        whole(self.every, "every")
        number(self.outer_lr, "outer_lr", above=True)
        number(self.momentum, "momentum", most=1, below=True)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        start = peer.params = peer.shared["params"]
        for batch in islice(batches, self.every):
            peer.step(peer.loss(batch))
        mean = yield Mean(peer.params, start=start)

        slope = tree.map(torch.sub, start, mean)  # Δ, the pseudo-gradient
        velocity = peer.shared.get("velocity", tree.map(torch.zeros_like, slope))
        velocity = tree.map(lambda v, d: self.momentum * v + d, velocity, slope)
        step = tree.map(lambda d, v: d + self.momentum * v, slope, velocity) if self.nesterov else velocity
        peer.shared["velocity"] = velocity
        peer.params = peer.shared["params"] = tree.map(lambda x, s: x - self.outer_lr * s, start, step)
