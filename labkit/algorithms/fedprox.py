"""FedProx: FedAvg whose clients are held back from drifting away from the server's model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from labkit import tree
from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.clients import Clients
from labkit.checks import number
from labkit.exchange import Mean


@dataclass(frozen=True)
class FedProx(Clients):
    """Clients descend on ℓₖ(xₖ) + μ/2 ‖xₖ − x‖², whose gradient is ∇ℓₖ + μ (xₖ − x)  (arXiv:1812.06127, Alg. 2).

    With μ = 0 it is FedAvg, as whose clients these are sampled and weighted; Alg. 2 samples them in proportion to their
    examples and averages plainly, which has the same expectation. Raises SettingError for settings out of range.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, FedProx(mu=0.1, participation=0.5), peers=8, rounds=20).result()
    History: FedProx, 8 peers, after 20 rounds test accuracy 9...%, 0.03 MB sent per peer
    """

    mu: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self.mu, "mu")

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        start = peer.params = peer.shared["params"]
        for batch in peer.local(batches, self.every, self.epochs):
            gradients = peer.gradients(peer.loss(batch))
            peer.apply(tree.map(lambda g, x, x0: g + self.mu * (x - x0), gradients, peer.params, start))
        peer.shared["params"] = yield Mean(peer.params, weight=peer.examples, start=start)
