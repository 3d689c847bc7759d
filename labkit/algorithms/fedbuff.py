"""FedBuff: clients train and push their change whenever they are done; the server moves when Z have come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from labkit import tree
from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.parameterserver import OptimizerFactory, require_policy
from labkit.checks import number, whole
from labkit.exchange import Push
from labkit.tasks.sync import ASP, BSP, SSP


@dataclass(frozen=True)
class FedBuff:
    """w ← w − η_g (1/Z) Σ Δᵢ over each Z pushes, Δᵢ = wᵢ − yᵢ after local SGD from wᵢ  (arXiv:2106.06639, Alg. 1).

    `buffer` is Z (the paper's K), `every` the local steps Q, `server_lr` η_g. `staleness_scaling` weighs Δᵢ by
    1/√(1+τ), τ being the server's updates since wᵢ. Alg. 1 samples a new client for every one that is done;
    here that is the same peer again, so that all n train all the time, each with its own optimiser, which it keeps.
    `policy` may bound how far ahead the fastest gets, as the paper's analysis does. A buffer that is not full when the
    run ends is lost. With Z = 1, Q = 1, η_g = 1/n and plain SGD it is ParameterServer(ASP()); under BSP() with Z = n
    and η_g = 1 it is LocalSGD(Q). Raises SettingError for settings out of range.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, FedBuff(buffer=2), peers=4, rounds=10).result()
    History: FedBuff, 4 peers, after 10 rounds test accuracy 9...%, 0.03 MB sent per peer
    """

    asynchronous: ClassVar[bool] = True

    buffer: int = 10
    every: int = 10
    server_lr: float = 1.0
    staleness_scaling: bool = False
    policy: BSP | SSP | ASP = ASP()  # noqa: RUF009

    def __post_init__(self) -> None:
        whole(self.buffer, "buffer")
        whole(self.every, "every")
        number(self.server_lr, "server_lr", above=True)
        require_policy(self.policy)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        start = tree.map(torch.clone, peer.params)  # wᵢ
        for batch in islice(batches, self.every):
            peer.step(peer.loss(batch))
        peer.params = yield Push(tree.map(torch.sub, start, peer.params))

    def server(self, weights: dict[str, Tensor], optimizer: OptimizerFactory, peers: int) -> BufferServer:
        """The server, which begins with these weights; only clients use the run's optimiser."""
        return BufferServer(weights, self.buffer, self.server_lr, self.staleness_scaling)


class BufferServer:
    """Adds up what is pushed until there are Z of it, then moves by their mean."""

    def __init__(self, weights: dict[str, Tensor], buffer: int, rate: float, scaling: bool) -> None:
        self.weights = tree.map(lambda w: w.detach().clone(), weights)
        self.version = 0
        self._buffer, self._rate, self._scaling = buffer, rate, scaling
        self._sum, self._count = tree.map(torch.zeros_like, self.weights), 0

    def take(self, update: dict[str, Tensor], staleness: int) -> None:
        """Δ̄ ← Δ̄ + s(τ) Δᵢ, and with the Z-th of them w ← w − η_g Δ̄/Z."""
        scale = (1 + staleness) ** -0.5 if self._scaling else 1.0
        for name, total in self._sum.items():
            total.add_(update[name], alpha=scale)
        self._count += 1
        if self._count == self._buffer:
            for name, w in self.weights.items():
                w.sub_(self._sum[name], alpha=self._rate / self._buffer)
                self._sum[name].zero_()
            self._count = 0
            self.version += 1
