"""Request handlers: what a server keeps, or what peers that average in pairs have, and who may go on when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from labkit import tree
from labkit.engines.evaluation import trained
from labkit.engines.experiment import Experiment
from labkit.errors import ExchangeError, ModelError
from labkit.exchange import Pair, Push, Request, Server
from labkit.tree import Tree

Params = dict[str, Tensor]


class StalenessGate:
    """A peer that has finished c rounds begins the next when the slowest has finished c − `bound`.

    That is BSP for a bound of 0, SSP for a finite one, and ASP for an infinite one (`labkit.tasks.sync`).

    >>> gate = StalenessGate(range(2), bound=1)
    >>> gate.finish(0), gate.finish(0), gate.finish(1)
    ([0], [], [0, 1])
    """

    def __init__(self, peers: Iterable[int], bound: float) -> None:
        self.done = dict.fromkeys(peers, 0)  # rounds finished, of those who are there
        self.slowest = 0
        self._bound = bound
        self._with = Counter(self.done.values())  # how many peers have finished so many rounds
        self._waiting: set[int] = set()

    def finish(self, peer: int) -> list[int]:
        """The peer has finished one more round; those who may go on now, ascending."""
        count = self.done[peer]
        self.done[peer] = count + 1
        self._with[count] -= 1
        self._with[count + 1] += 1
        self._waiting.add(peer)
        if count > self.slowest or self._with[count]:
            return self._released([peer])
        self.slowest += 1
        return self._released(sorted(self._waiting))

    def leave(self, peer: int) -> list[int]:
        """The peer does not come back, and nobody waits for it; those who may go on now, ascending."""
        self._with[self.done.pop(peer)] -= 1
        self._waiting.discard(peer)
        self.slowest = min(self.done.values(), default=self.slowest)
        return self._released(sorted(self._waiting))

    def _released(self, peers: list[int]) -> list[int]:
        free = [peer for peer in peers if self.done[peer] - self.slowest <= self._bound]
        self._waiting.difference_update(free)
        return free


class RequestHandler(Protocol):
    """What takes the peers' requests, one after the other."""

    def take(self, peer: int, round: int, request: Request) -> int:
        """Do what the peer asks at the end of its round; how many changes of the parameters it had not seen."""

    def reply(self, peer: int) -> Params:
        """What the peer goes on from: not a copy."""

    def params(self, peer: int) -> Params:
        """The parameters by which the peer is judged."""

    def adopt(self, rate: float) -> None:
        """Take this learning rate, if one is kept here."""


class ServerHandler:
    """A server: one set of weights for all, changed by every push, or under BSP by all pushes of a round.

    Under BSP pushes are held until those of all peers have come, and then taken in the order of the peers, so that the
    result does not depend on who was first.
    """

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        if not experiment.alike:
            raise ModelError(
                "A server keeps one model, and the peers start from different ones: give one model for all of them."
            )
        algorithm: Any = experiment.algorithm
        weights = trainable(experiment.models[0], device)
        self.server: Server = algorithm.server(weights, experiment.optimizer_of(0), experiment.peers)
        self._seen = [0] * experiment.peers  # the version that each peer has
        self._waits = experiment.traits.policy.bound == 0
        self._held: dict[int, tuple[Push, int]] = {}
        self._present = set(range(experiment.peers))

    def take(self, peer: int, round: int, request: Request) -> int:
        push = cast(Push, require(request, Push))
        staleness = self.server.version - self._seen[peer]
        self._held[peer] = push, staleness
        self._settle()
        return staleness

    def adopt(self, rate: float) -> None:
        if hasattr(self.server, "learning_rate"):  # of the run's own optimiser, where the server has it
            self.server.learning_rate = rate

    def leave(self, peer: int) -> None:
        """The peer does not come back."""
        self._present.discard(peer)
        self._settle()

    def reply(self, peer: int) -> Params:
        self._seen[peer] = self.server.version
        return self.server.weights

    def params(self, peer: int) -> Params:
        return self.server.weights

    @torch.no_grad()
    def _settle(self) -> None:
        if self._waits and not self._held.keys() >= self._present:
            return
        for peer in sorted(self._held):
            push, staleness = self._held[peer]
            push.deliver(self.server, staleness)
        self._held.clear()


class PairHandler:
    """The parameters of all peers, [n, …], in which two of them meet at a time."""

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        self._experiment = experiment
        each = beginnings(experiment, device)
        self._rows = {
            name: torch.stack([own[name] for own in each]).expand(experiment.peers, *leaf.shape).clone()
            for name, leaf in each[0].items()
        }
        self._changes = [0] * experiment.peers  # how often others changed what the peer has
        self._seen = [0] * experiment.peers

    @torch.no_grad()
    def take(self, peer: int, round: int, request: Request) -> int:
        pair = cast(Pair, require(request, Pair))
        mine, partner = self.params(peer), pair.partner(peer, round, self._experiment.seed, self._experiment.peers)
        if partner is not None:
            theirs = self.params(partner)
            for name, average in cast(Params, Pair.average(mine, theirs)).items():
                mine[name].copy_(average)
                theirs[name].copy_(average)
            self._changes[partner] += 1
        for name, leaf in mine.items():
            leaf.add_(cast(Params, pair.x)[name])
        return self._changes[peer] - self._seen[peer]

    def reply(self, peer: int) -> Params:
        self._seen[peer] = self._changes[peer]
        return self.params(peer)

    def params(self, peer: int) -> Params:
        return {name: rows[peer] for name, rows in self._rows.items()}

    def adopt(self, rate: float) -> None:
        """The peers have optimisers of their own."""


def request_handler(experiment: Experiment, device: torch.device) -> ServerHandler | PairHandler:
    """A server's where the algorithm has one, else that of the peers themselves."""
    return ServerHandler(experiment, device) if experiment.traits.central else PairHandler(experiment, device)


def require(request: Request, kind: type[Request]) -> Request:
    """Raise ExchangeError for another kind of request than is answered here."""
    if not isinstance(request, kind):
        raise ExchangeError(
            f"A peer yields {type(request).__name__}, and who is asked answers {kind.__name__}: push only where the "
            "algorithm has a server(weights, optimizer, peers), and pair only where it has none."
        )
    return request


def beginnings(experiment: Experiment, device: torch.device) -> list[Params]:
    """The parameters that each peer starts from, or the only ones where all start alike.

    Raises ExchangeError where they have different shapes.
    """
    each = [trainable(model, device) for model in experiment.models]
    tree.require_alike(list(each))
    return each


def trainable(model: nn.Module, device: torch.device) -> Params:
    """Copies of a model's trainable parameters by name."""
    return {name: p.detach().to(device, copy=True) for name, p in model.named_parameters() if p.requires_grad}


def loaded(model: nn.Module, params: Tree) -> nn.Module:
    """The model with these trainable parameters."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in cast(Params, params).items():
            named[name].copy_(p)
    return model


def builder(experiment: Experiment, params: Callable[[int], Params]) -> Callable[[int], nn.Module]:
    """What makes each peer's trained model, with the parameters that it has at the end."""
    return lambda peer: trained(loaded(experiment.fresh_model(peer), params(peer)))
