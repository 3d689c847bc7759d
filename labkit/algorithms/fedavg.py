"""FedAvg: clients train on their own data, the server averages their models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.clients import Clients
from labkit.exchange import Mean


@dataclass(frozen=True)
class FedAvg(Clients):
    """x ← Σₖ∈S (nₖ / n_S) xₖ, each xₖ being local SGD from x  (McMahan et al., arXiv:1602.05629, Alg. 1).

    nₖ is the number of client k's examples and n_S their sum over the clients S of this round. B is the run's
    `batch_size`, E is `epochs`, C is `participation`; without `epochs` every client takes `every` steps.
    Raises SettingError for settings out of range.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, FedAvg(every=10, participation=0.5), peers=8, rounds=20).result()
    History: FedAvg, 8 peers, after 20 rounds test accuracy 9...%, 0.03 MB sent per peer
    """

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        start = peer.params = peer.shared["params"]
        for batch in peer.local(batches, self.every, self.epochs):
            peer.step(peer.loss(batch))
        peer.shared["params"] = yield Mean(peer.params, weight=peer.examples, start=start)
