"""FedAdam: FedAvg whose server takes Adam's step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit import tree
from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.clients import Clients
from labkit.checks import number
from labkit.exchange import Mean


@dataclass(frozen=True)
class FedAdam(Clients):
    """m ← β₁ m + (1−β₁) Δ, v ← β₂ v + (1−β₂) Δ², x ← x + η m / (√v + τ)  (Reddi et al., arXiv:2003.00295, Alg. 2).

    Δ is the mean of the clients' xₖ − x, weighted by their examples as in FedAvg where Alg. 2 has a plain mean; v
    starts from τ² and nothing corrects a bias. η is `server_lr`; τ, `tau`, makes it the less adaptive the larger it is.
    Raises SettingError for settings out of range.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, FedAdam(server_lr=0.03, participation=0.5), peers=8, rounds=20).result()
    History: FedAdam, 8 peers, after 20 rounds test accuracy 9...%, 0.03 MB sent per peer
    """

    server_lr: float = 0.03
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self.server_lr, "server_lr", above=True)
        number(self.beta1, "beta1", most=1, below=True)
        number(self.beta2, "beta2", most=1, below=True)
        number(self.tau, "tau", above=True)

    def second_moment(self, v: Tensor, change: Tensor) -> Tensor:
        """v ← β₂ v + (1−β₂) Δ²."""
        return self.beta2 * v + (1 - self.beta2) * change.square()

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        start = peer.params = peer.shared["params"]
        for batch in peer.local(batches, self.every, self.epochs):
            peer.step(peer.loss(batch))
        mean = yield Mean(peer.params, weight=peer.examples, start=start)

        change = tree.map(torch.sub, mean, start)
        m = peer.shared.get("m", tree.map(torch.zeros_like, start))
        v = peer.shared.get("v", tree.map(lambda x: torch.full_like(x, self.tau**2), start))
        m = peer.shared["m"] = tree.map(lambda m, d: self.beta1 * m + (1 - self.beta1) * d, m, change)
        v = peer.shared["v"] = tree.map(self.second_moment, v, change)
        peer.shared["params"] = tree.map(lambda x, m, v: x + self.server_lr * m / (v.sqrt() + self.tau), start, m, v)
