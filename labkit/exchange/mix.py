"""Mix: every peer receives a weighted average of its neighbours' values and its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import embedding_bag

from labkit import tree
from labkit.costs.link import Link
from labkit.exchange.group import RankGroup
from labkit.exchange.message import Message, Transfer
from labkit.exchange.topologies import choose
from labkit.exchange.topology import Floats, Integers, Topology
from labkit.tree import Tree


@dataclass(frozen=True, eq=False)
class Mix(Message):
    """x̄ᵢ = Σⱼ W_ij xⱼ for a doubly stochastic W (gossip; Lian et al., arXiv:1705.09056, Alg. 1), point to point.

    `topology` is a name such as "ring", a `Topology`, or a matrix W [n, n]; the peers that take part are its rows, in
    order. Raises SettingError for a W that is not doubly stochastic, ExchangeError for one of another number of peers.

    >>> import torch
    >>> Mix.lockstep([Mix(torch.tensor([x]), [[0.75, 0.25], [0.25, 0.75]]) for x in (0.0, 4.0)])
    [tensor([1.]), tensor([3.])]
    """

    formula: ClassVar[str] = r"\bar x_i = \sum_j W_{ij}\,x_j"

    x: Tree
    topology: str | Topology | ArrayLike

    def __post_init__(self) -> None:
        if not isinstance(self.topology, str | Topology):
            object.__setattr__(self, "topology", Topology.of(self.topology))

    @staticmethod
    def lockstep(messages: Sequence[Mix]) -> list[Tree]:
        sent = [message.x for message in messages]
        tree.require_alike(sent)
        topology = messages[0].among(len(messages))
        replies: list[Tree] = []
        for i in range(len(sent)):
            row = slice(*topology.starts[i : i + 2])
            weights, sources = topology.values[row].tolist(), topology.sources[row].tolist()
            parts = [tree.map(lambda leaf, w=w: w * leaf, sent[j]) for w, j in zip(weights, sources, strict=True)]
            replies.append(tree.map(lambda *leaves: torch.stack(leaves).sum(0), *parts))
        return replies

    def stacked(self) -> Tree:
        topology = self.among(len(tree.leaves(self.x)[0]))
        return _mixed(self.x, topology.starts, topology.sources, topology.values)  # [n, …]

    def collective(self, group: RankGroup) -> Tree:
        topology = self.among(sum(group.blocks))
        stretches = [topology.starts[[*group.bounds(rank)]] for rank in range(group.size)]  # of each rank's weights
        wanted = [np.unique(topology.sources[low:high]) for low, high in stretches]
        near = group.fetch(self.x, wanted)
        first, last = group.bounds(group.rank)
        low, high = stretches[group.rank]
        at = np.searchsorted(wanted[group.rank], topology.sources[low:high])
        return _mixed(near, topology.starts[first : last + 1] - low, at, topology.values[low:high])  # [K, …]

    def among(self, peers: int) -> Topology:
        """The topology of the peers that take part."""
        return choose(self.topology, peers)

    def bytes(self, peers: int) -> float:
        return len(self.among(peers).edges) / peers * tree.nbytes(self.x)

    def seconds(self, peers: int, link: Link) -> float:
        degree = self.among(peers).degree
        return link.seconds(degree * tree.nbytes(self.x), degree)

    def transfers(self, peers: int) -> list[Transfer]:
        size = tree.nbytes(self.x)
        return [Transfer(source, target, size) for source, target in self.among(peers).edges.tolist()]

    def arrivals(self, ready: Tensor, link: Link) -> Tensor:
        """A peer waits for its neighbours only, each of which sends to its own neighbours one after the other."""
        topology, moments = self.among(len(ready)), ready.numpy()
        sent = moments + topology.degrees * link.seconds(tree.nbytes(self.x), 1)
        latest = np.where(topology.degrees > 0, sent, moments)
        np.maximum.at(latest, topology.edges[:, 1], sent[topology.edges[:, 0]])
        return torch.from_numpy(latest)


def _mixed(rows: Tree, starts: Integers, at: Integers, weights: Floats) -> Tree:
    """Row i of the result is Σₖ weights[k] · rows[at[k]] for starts[i] ≤ k < starts[i+1]."""

    def one(leaf: Tensor) -> Tensor:
        real = leaf if leaf.is_floating_point() else leaf.to(torch.get_default_dtype())
        flat = real.unsqueeze(-1).flatten(1)  # [rows, numbers], also of no rows
        # the embedding bag is a product with a sparse matrix, many times as fast as torch.sparse and as W @ x
        index, offsets = (torch.tensor(it, device=leaf.device) for it in (at, starts[:-1]))
        each = torch.tensor(weights, dtype=flat.dtype, device=leaf.device)
        return embedding_bag(index, flat, offsets, mode="sum", per_sample_weights=each).view(
            len(offsets), *leaf.shape[1:]
        )

    return tree.map(one, rows)
