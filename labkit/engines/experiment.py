"""Experiment: everything that decides a training run's result, whichever engine carries it out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from labkit.algorithms.base import Algorithm
from labkit.data import Dataset, batches
from labkit.data.batches import Indices
from labkit.engines.control import Control
from labkit.errors import DivergenceError
from labkit.history import Row

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Experiment:
    """What is trained on what by which algorithm; equal experiments give equal results on every engine."""

    model: nn.Module
    dataset: Dataset
    algorithm: Algorithm
    shards: tuple[Indices, ...]  # each peer's training examples
    rounds: int
    batch_size: int
    seed: int
    optimizer: OptimizerFactory
    loss: Loss
    evaluate_every: int

    @property
    def peers(self) -> int:
        return len(self.shards)

    def fresh_model(self) -> nn.Module:
        """A copy of the model as it stands before the first round."""
        return copy.deepcopy(self.model)

    def examples(self, peer: int) -> int:
        """How many training examples peer `peer` holds."""
        return len(self.shards[peer])

    def indices(self, peer: int) -> Iterator[Indices]:
        """The peer's endless stream of batches, as indices [B] into the training examples."""
        return batches(self.shards[peer], self.batch_size, self.seed, peer)

    def batches(self, peer: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The peer's endless stream of batches: inputs [B, …] and targets [B]."""
        x, y = self.dataset.x.to(device), self.dataset.y.to(device)
        for indices in self.indices(peer):
            at = torch.from_numpy(indices).to(device)
            yield x[at], y[at]

    def stacked_batches(self, peers: range, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The endless stream of the batches of K peers at once: inputs [K, B, …] and targets [K, B]."""
        x, y = self.dataset.x.to(device), self.dataset.y.to(device)
        for rows in zip(*(self.indices(peer) for peer in peers), strict=True):
            at = torch.from_numpy(np.stack(rows)).to(device)  # [K, B]
            yield x[at], y[at]

    def evaluates(self, round: int) -> bool:
        """Whether the models are tested after this round (counted from 1); the last round always is."""
        return round % self.evaluate_every == 0 or round == self.rounds


class Engine(Protocol):
    """One way to carry out an experiment."""

    @property
    def name(self) -> str:
        """How plots and histories call the engine."""

    @property
    def clock(self) -> str:
        """Whose seconds it reports: "wall" or "virtual"."""

    @property
    def ledger(self) -> str:
        """Whether its bytes are "measured" on the wire or evaluated by "formula"."""

    def run(self, experiment: Experiment, report: Callable[[Row], None], control: Control) -> list[nn.Module]:
        """Train, reporting a row per round and obeying `control` between rounds; one trained model per peer."""


def require_finite(losses: Iterable[float], round: int, first_peer: int = 0) -> None:
    """Raise DivergenceError naming the first peer whose loss is NaN or infinite."""
    for peer, loss in enumerate(losses, start=first_peer):
        if not np.isfinite(loss):
            raise DivergenceError(
                f"The loss of peer {peer} became {loss} in round {round}: lower the learning rate, clip the "
                "gradients, or look for NaN in the data."
            )
