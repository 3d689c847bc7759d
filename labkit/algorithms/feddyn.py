"""FedDyn: a regulariser that each client adapts, so that the clients' optima agree with that of all."""

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
class FedDyn(Clients):
    """Clients descend on ℓₖ(xₖ) − ⟨gₖ, xₖ⟩ + α/2 ‖xₖ − x‖², then gₖ ← gₖ − α (xₖ − x)  (arXiv:2111.04263, Alg. 1).

    The server: h ← h − α (1/n) Σₖ∈S (xₖ − x), x ← (1/|S|) Σₖ∈S xₖ − h/α, where n counts all registered clients. In the
    paper a client finds the minimum; here it takes `every` steps towards it. Clients count alike, whatever their number
    of examples. Raises SettingError for settings out of range.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, FedDyn(alpha=0.1), peers=8, rounds=10, shards=lk.data.Dirichlet(0.5)).result()
    History: FedDyn, 8 peers, after 10 rounds test accuracy 9...%, 0.03 MB sent per peer
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self.alpha, "alpha", above=True)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        start = peer.params = peer.shared["params"]
        nothing = tree.map(torch.zeros_like, start)
        own = peer.state.get("gradient", nothing)  # gₖ = ∇ℓₖ where the client last stopped
        for batch in peer.local(batches, self.every, self.epochs):
            gradients = peer.gradients(peer.loss(batch))
            pull = tree.map(lambda g, x, x0: self.alpha * (x - x0) - g, own, peer.params, start)
            peer.apply(tree.map(torch.add, gradients, pull))
        peer.state["gradient"] = tree.map(lambda g, x, x0: g - self.alpha * (x - x0), own, peer.params, start)
        mean = yield Mean(peer.params, start=start)

        share = peer.present / peer.peers
        h = peer.shared.get("h", nothing)
        h = tree.map(lambda h, x_mean, x0: h - self.alpha * share * (x_mean - x0), h, mean, start)
        peer.shared["h"] = h
        peer.shared["params"] = tree.map(lambda x_mean, h: x_mean - h / self.alpha, mean, h)
