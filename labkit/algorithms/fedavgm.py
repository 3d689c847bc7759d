"""FedAvgM: FedAvg with momentum on the server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from labkit import tree
from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.clients import Clients
from labkit.checks import number
from labkit.exchange import Mean


@dataclass(frozen=True)
class FedAvgM(Clients):
    """v ← β v + Δ, x ← x − η v, with Δ = x − Σₖ (nₖ / n_S) xₖ what FedAvg would go  (Hsu et al., arXiv:1909.06335).

    β is `momentum`, η is `server_lr`, which the paper does not have: there it is 1. With β = 0 and η = 1 it is FedAvg.
    Raises SettingError for settings out of range.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, FedAvgM(momentum=0.5, participation=0.5), peers=8, rounds=20).result()
    History: FedAvgM, 8 peers, after 20 rounds test accuracy 9...%, 0.03 MB sent per peer
    """

    momentum: float = 0.9
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self.momentum, "momentum", most=1, below=True)
        number(self.server_lr, "server_lr", above=True)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        start = peer.params = peer.shared["params"]
        for batch in peer.local(batches, self.every, self.epochs):
            peer.step(peer.loss(batch))
        mean = yield Mean(peer.params, weight=peer.examples, start=start)

        velocity = peer.shared.get("velocity", tree.map(torch.zeros_like, start))
        velocity = tree.map(lambda v, x, x_mean: self.momentum * v + (x - x_mean), velocity, start, mean)
        peer.shared["velocity"] = velocity
        peer.shared["params"] = tree.map(lambda x, v: x - self.server_lr * v, start, velocity)
