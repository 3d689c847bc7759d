"""ADPSGD: no centre and no barrier; a peer that has a gradient averages with one random neighbour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from numpy.typing import ArrayLike

from labkit import tree
from labkit.algorithms.base import Batch, Peer, Round
from labkit.exchange import Pair, Topology
from labkit.exchange.topologies import choose


@dataclass(frozen=True)
class ADPSGD:
    """xᵢ ← (xᵢ + xⱼ)/2 − η ∇ℓᵢ(x̂ᵢ), xⱼ ← (xᵢ + xⱼ)/2: AD-PSGD  (Lian et al., arXiv:1710.06952, Alg. 1).

    x̂ᵢ is what peer i had when its round began, xᵢ and xⱼ what both have when they meet, for others may have averaged
    with them meanwhile. The step −η∇ℓ is whatever the peer's own optimiser makes of the gradient at x̂ᵢ. Averaging
    keeps Σᵢ xᵢ, so the mean of the models moves by 1/n of each step: when everybody has made just its first one, it is
    where AllReduce is with plain SGD; and of two peers that have met, each is half of the last step from their mean.
    `topology` is a name such as "ring", a Topology, or a doubly stochastic matrix W, of which only who neighbours whom
    matters; without neighbours the peers are Independent.
    Raises SettingError for an unknown topology, ExchangeError for one of another number of peers.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, ADPSGD("ring"), peers=4, rounds=100).result()
    History: ADPSGD, 4 peers, after 100 rounds test accuracy 8...%, 0.52 MB sent per peer
    """

    asynchronous: ClassVar[bool] = True

    topology: str | Topology | ArrayLike = "ring"

    def __post_init__(self) -> None:
        if not isinstance(self.topology, str | Topology):
            object.__setattr__(self, "topology", Topology.of(self.topology))

    def check(self, peers: int) -> None:
        """Refuse a topology that does not fit so many peers."""
        choose(self.topology, peers, seed=0, number=1)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        before = tree.map(torch.clone, peer.params)  # x̂ᵢ
        peer.step(peer.loss(next(batches)))
        step = tree.map(torch.sub, peer.params, before)  # −η ∇ℓᵢ(x̂ᵢ)
        peer.params = yield Pair(step, self.topology)
