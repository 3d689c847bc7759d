"""Peers and algorithms by hand: a round without a model, so that a wrapper's arithmetic can be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import torch

from labkit.engines.barriers import barriers
from labkit.exchange import Kind, Mean


@dataclass
class HandPeer:
    """One peer, or with `ids` [K] several stacked ones, that remembers and counts rounds and does nothing else."""

    ids: torch.Tensor
    peers: int
    present: int | None = None
    number: int = 1
    seed: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=lambda: {"params": {}})
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.present = self.peers if self.present is None else self.present


@dataclass(frozen=True)
class Tell:
    """Asks for the mean of given values [n, …], one for each peer, and keeps the reply under peer.state["reply"]."""

    values: Any
    weights: Any = None
    start: Any = None
    kind: Kind = Kind.GRADIENT

    def round(self, peer, batches):
        mine = {name: leaf[peer.ids] for name, leaf in self.values.items()}
        weight = None if self.weights is None else self.weights[peer.ids]
        start = self.start
        if start is not None and peer.ids.dim():
            start = {name: leaf.unsqueeze(0) for name, leaf in start.items()}  # as in peer.shared
        peer.state["reply"] = yield Mean(mine, weight, start=start, kind=self.kind)


@dataclass(frozen=True)
class Drift:
    """Local steps from a common start, then a mean of the changes since then, weighted by examples."""

    means_of: ClassVar[tuple[Kind, ...]] = (Kind.CHANGE,)

    every: int = 2
    participation: float | None = None

    def round(self, peer, batches):
        start = {name: p.clone() for name, p in peer.params.items()}
        if self.participation is not None:
            peer.params = start = peer.shared["params"]
        for batch in islice(batches, self.every):
            peer.step(peer.loss(batch))
        mean = yield Mean(peer.params, peer.examples, start=start)
        peer.params = mean
        if self.participation is not None:
            peer.shared["params"] = mean


def in_lockstep(algorithm, peers):
    """One round of separate peers; the messages at each barrier."""
    rounds = [algorithm.round(peer, iter(())) for peer in peers]
    return [met for met, _ in barriers(rounds, lambda met: type(met[0]).lockstep(met))]


def in_a_stack(algorithm, peer):
    """One round of stacked peers; the message at each barrier."""
    return [met[0] for met, _ in barriers([algorithm.round(peer, iter(()))], lambda met: [met[0].stacked()])]


def alone(peers, present=None, **settings):
    """Separate peers, all of them or those of the given numbers."""
    ids = range(peers) if present is None else present
    return [HandPeer(torch.tensor(k), peers, len(ids), **settings) for k in ids]


def stacked(peers, present=None, **settings):
    """The same peers as one."""
    ids = list(range(peers) if present is None else present)
    return HandPeer(torch.tensor(ids), peers, len(ids), **settings)
