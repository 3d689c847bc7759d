"""Gossip: no centre; every peer averages with its neighbours only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from numpy.typing import ArrayLike

from labkit.algorithms.base import Batch, Peer, Round
from labkit.checks import whole
from labkit.exchange import Kind, Mix, Topology
from labkit.exchange.topologies import choose


@dataclass(frozen=True)
class Gossip:
    """xᵢ ← Σⱼ W_ij (xⱼ − η ∇ℓⱼ(xⱼ)): D-PSGD  (Lian et al., arXiv:1705.09056, Alg. 1), adapt then combine.

    Alg. 1 takes the gradient at xᵢ and subtracts it after mixing; here peers step first and mix what they then have,
    so that on the complete graph this is AllReduce, and peers agree where a round ends. `topology` is a name such as
    "ring", a Topology, or a doubly stochastic matrix W; "pairing" and "one_peer_exponential" are another one in each
    round. With `every` they mix after so many steps.
    Raises SettingError for settings out of range, ExchangeError for a topology of another number of peers.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, Gossip("torus"), peers=9, rounds=100).result()
    History: Gossip, 9 peers, after 100 rounds test accuracy 8...%, 1.04 MB sent per peer
    """

    means_of: ClassVar[tuple[Kind, ...]] = ()

    topology: str | Topology | ArrayLike = "ring"
    every: int = 1

    def __post_init__(self) -> None:
        whole(self.every, "every")
        if not isinstance(self.topology, str | Topology):
            object.__setattr__(self, "topology", Topology.of(self.topology))

    def check(self, peers: int) -> None:
        """Refuse a topology that does not fit so many peers."""
        choose(self.topology, peers, seed=0, number=1)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        for batch in islice(batches, self.every):
            peer.step(peer.loss(batch))
        peer.params = yield Mix(peer.params, choose(self.topology, peer.present, peer.seed, peer.number))
