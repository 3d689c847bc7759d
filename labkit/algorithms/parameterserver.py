"""ParameterServer: peers push gradients to a server as they come, and go on from the weights it then has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.optim import Optimizer

from labkit import tree
from labkit.algorithms.base import Batch, Peer, Round
from labkit.errors import SettingError
from labkit.exchange import Push
from labkit.tasks.sync import ASP, BSP, SSP

OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]


@dataclass(frozen=True)
class ParameterServer:
    """w ← w − (η/n) ∇ℓᵢ(wᵢ), where wᵢ is what peer i last received  (Downpour SGD, Dean et al., NeurIPS 2012).

    `policy` says when a push is answered: BSP() when all n of the round have come, SSP(s) when the slowest peer is no
    more than s rounds behind (Ho et al., NeurIPS 2013), ASP() at once. A gradient is stale by the server's updates
    since its wᵢ: none under BSP, at most (2s+1)(n−1) under SSP(s). The run's optimiser works on the server, with η/n
    for η, so that n pushes are one step of AllReduce: with plain SGD, BSP is AllReduce. `staleness_aware` lets staler
    gradients weigh less, η/max(n, τ): the η/τ of arXiv:1511.05950, but never more than the plain η/n.

    On real workers the server is a thread of the first one. Who comes first is then not up to the seed: only BSP gives
    the same result every time. Peers on one worker compute together and push one right after the other.
    Raises SettingError for a policy of another type.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, ParameterServer(lk.SSP(2)), peers=4, rounds=100).result()
    History: ParameterServer, 4 peers, after 100 rounds test accuracy 8...%, 0.26 MB sent per peer
    """

    asynchronous: ClassVar[bool] = True

    policy: BSP | SSP | ASP = ASP()  # noqa: RUF009
    staleness_aware: bool = False

    def __post_init__(self) -> None:
        require_policy(self.policy)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        gradients = peer.gradients(peer.loss(next(batches)))  # at wᵢ
        peer.params = yield Push(gradients)

    def server(self, weights: dict[str, Tensor], optimizer: OptimizerFactory, peers: int) -> GradientServer:
        """The server of so many peers, which begins with these weights."""
        return GradientServer(weights, optimizer, peers, self.staleness_aware)


class GradientServer:
    """Steps the run's optimiser with every gradient pushed to it, at the rate of one of n."""

    def __init__(self, weights: dict[str, Tensor], optimizer: OptimizerFactory, peers: int, aware: bool) -> None:
        self.weights = tree.map(lambda w: w.detach().clone(), weights)
        self.version = 0
        self._optimizer = optimizer(list(self.weights.values()))
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._peers, self._aware = peers, aware

    @property
    def learning_rate(self) -> float:
        """η, of the run's optimiser."""
        return float(self._rates[0])

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._rates = [rate for _ in self._rates]

    def take(self, update: dict[str, Tensor], staleness: int) -> None:
        """w ← w − (η/n) g by the optimiser's own formula, τ being the staleness."""
        share = max(self._peers, staleness) if self._aware else self._peers
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate / share
        for name, w in self.weights.items():
            w.grad = update[name]
        self._optimizer.step()
        self.version += 1


def require_policy(policy: object) -> None:
    """Raise SettingError for what does not say who waits for whom."""
    if not isinstance(policy, BSP | SSP | ASP):
        raise SettingError(f"policy={policy!r} does not say who waits: give lk.BSP(), lk.SSP(s) or lk.ASP().")
