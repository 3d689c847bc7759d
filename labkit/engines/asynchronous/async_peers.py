"""Asynchronous peers: each in a round of its own, one by one or stacked in company that changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Hashable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from labkit import tree
from labkit.engines.asynchronous.request_handlers import Params, RequestHandler, loaded
from labkit.engines.batches import Examples, StackedStream, Stream
from labkit.engines.evaluation import Evaluation, Scores
from labkit.engines.experiment import Experiment
from labkit.engines.optimizer_step import LearningRate
from labkit.engines.peer import OnePeer, Peers, Place
from labkit.engines.round_checks import started
from labkit.engines.stacked.peers import StackedPeers
from labkit.engines.stacked.stacks import Stacks
from labkit.errors import ExchangeError
from labkit.exchange import Message, Request
from labkit.tree import Tree


class Told(NamedTuple):
    """A peer's mean loss in a round, what it has logged, and its gradient steps."""

    loss: float
    logged: dict[str, float]
    steps: float


Asked = tuple[Request, Told]  # what a peer's round ends with, and how it went


def asked(requests: Sequence[Request], peers: Peers) -> list[Asked]:
    """The same of each peer; a gradient that is pushed is a step, which the server takes."""
    logged = {name: values.tolist() for name, values in peers.logged.items()}
    taken = [float(steps or 1) for steps in peers.taken.tolist()]
    return [
        (request, Told(loss, {name: values[k] for name, values in logged.items()}, taken[k]))
        for k, (request, loss) in enumerate(zip(requests, peers.mean_losses(), strict=True))
    ]


class AsyncPeers(Protocol):
    """All peers of a run; each begins a round, asks, is answered, and begins the next one when it may.

    `rate` is the learning rate that the user asks for.
    """

    rate: LearningRate

    def begin(self, peer: int, number: int) -> None:
        """The peer begins round `number` with the parameters it has."""

    def ask(self, peer: int) -> Asked:
        """What it asks at the end of that round, which is computed now at the latest."""

    def answer(self, peer: int, reply: Params) -> None:
        """Its round ends with the reply."""

    def scores(self, params: list[Params], evaluation: Evaluation) -> Scores:
        """What the peers' models score with these parameters."""


class AsyncSingles:
    """Ordinary models, which compute one after the other: the reference."""

    def __init__(self, experiment: Experiment, handler: RequestHandler, device: torch.device) -> None:
        place, examples = Place.of(experiment, device, archived=True), Examples(experiment.dataset, device)
        everybody, self.rate = range(experiment.peers), place.rate
        self._experiment = experiment
        self._peers = [OnePeer(experiment, k, place) for k in everybody]
        self._streams = [Stream(examples, experiment.indices(k)) for k in everybody]
        self._generators: dict[int, Generator[Any, Any, None]] = {}

    def begin(self, peer: int, number: int) -> None:
        self._peers[peer].begin(number)

    def ask(self, peer: int) -> Asked:
        one = self._peers[peer]
        generator = started(self._experiment.algorithm_of(peer), one, self._streams[peer])
        request = require_request(next(generator, None), self._experiment.algorithm_of(peer))
        self._generators[peer] = generator
        return asked([request], one)[0]

    def answer(self, peer: int, reply: Params) -> None:
        one, reply = self._peers[peer], tree.map(torch.clone, reply)
        finish_round(self._generators.pop(peer), reply, one, self._experiment.algorithm_of(peer))

    def scores(self, params: list[Params], evaluation: Evaluation) -> Scores:
        fresh = self._experiment.fresh_model
        return Scores.joined([evaluation.alone(loaded(fresh(k), own), k) for k, own in enumerate(params)])


class AsyncStacks:
    """Stacked peers: when the first gradient is needed, those of all whose parameters are known are computed at once.

    Whoever has begun a round has all it needs for its request, for in an asynchronous round nothing comes in between.
    Those who have begun are computed in stacks of at most `most` peers of one kind (measured if it is not given).
    """

    def __init__(
        self, experiment: Experiment, handler: RequestHandler, device: torch.device, most: int | None = None
    ) -> None:
        place, self._examples = Place.of(experiment, device, archived=True), Examples(experiment.dataset, device)
        self._experiment, self.rate = experiment, place.rate
        self._indices = [experiment.indices(k) for k in range(experiment.peers)]
        self._rows = {
            name: torch.stack([handler.params(k)[name] for k in range(experiment.peers)]) for name in handler.params(0)
        }  # the parameters with which each peer begins its round, [n, …]
        self._optimizers = OptimizerStates(experiment.peers)
        self._made = Stacks(experiment, place, self._examples, RoundStack)
        self._most = most
        self._begun: dict[int, int] = {}  # the rounds of those whose requests are not computed
        self._asked: dict[int, Asked] = {}
        self._checked = False

    def begin(self, peer: int, number: int) -> None:
        self._begun[peer] = number

    def ask(self, peer: int) -> Asked:
        if peer not in self._asked:
            for ids in self._stacks(list(self._begun)):
                self._compute(ids)
            self._begun.clear()
        return self._asked.pop(peer)

    def answer(self, peer: int, reply: Params) -> None:
        for name, rows in self._rows.items():
            rows[peer].copy_(reply[name])

    def scores(self, params: list[Params], evaluation: Evaluation) -> Scores:
        found, order = [], []
        for ids in self._stacks(list(range(len(params)))):
            stack = self._made.stack(ids)
            stack.params = {name: torch.stack([params[k][name] for k in ids]) for name in self._rows}
            found.append(stack.scores(evaluation))
            order += ids
        return Scores.joined(found, torch.tensor(order).argsort())

    # -- inside

    def _stacks(self, ids: list[int]) -> list[list[int]]:
        """The peers in stacks of one kind, whose optimisers have taken equally many steps."""
        alike: dict[Hashable, list[int]] = defaultdict(list)
        for k in ids:
            alike[self._experiment.kind(k), self._experiment.local_steps(k), self._optimizers.age(k)].append(k)
        if self._most is None:
            self._most = self._made.size(max(alike.values(), key=len))
        most = self._most
        return [own[i : i + most] for own in alike.values() for i in range(0, len(own), most)]

    def _compute(self, ids: list[int]) -> None:
        algorithm, stack = self._experiment.algorithm_of(ids[0]), self._made.stack(ids)
        stack.params = {name: rows[ids] for name, rows in self._rows.items()}
        stack.begin_rounds([self._begun[k] for k in ids])
        self._optimizers.load(stack)
        generator = started(algorithm, stack, StackedStream(self._examples, [self._indices[k] for k in ids]))
        request = require_request(next(generator, None), algorithm)
        self._optimizers.keep(stack)
        self._asked |= zip(ids, asked(request.split(), stack), strict=True)
        if not self._checked:  # what a round does after its request is left out below; so let it do nothing
            before = tree.map(torch.clone, stack.params)  # the requests may hold them
            finish_round(generator, tree.map(torch.zeros_like, before), stack, algorithm)
            stack.params, self._checked = before, True
        generator.close()


def require_request(met: Message | None, algorithm: object) -> Request:
    """What an asynchronous round yields first; ExchangeError where that is anything else, or nothing."""
    if not isinstance(met, Request):
        said = "no request, or more than one" if met is None else type(met).__name__
        raise ExchangeError(
            f"{type(algorithm).__name__} is asynchronous, and its round yields {said}: let each round yield one "
            "request, such as Push, and nothing else."
        )
    return met


def finish_round(generator: Generator[Any, Any, None], reply: Params, peer: Any, algorithm: object) -> None:
    """Run the rest of an asynchronous round; ExchangeError where it does more than to take the reply over."""
    try:
        generator.send(cast(Tree, reply))
    except StopIteration:
        if all(torch.equal(p, reply[name]) for name, p in peer.params.items()):
            return
    raise ExchangeError(
        f"{type(algorithm).__name__} is asynchronous, and its round goes on after its request: let each round end "
        "with peer.params = yield request, which is where the next one begins."
    )


class RoundStack(StackedPeers):
    """Stacked peers that live for one round each, which may be a different one for each of them."""

    def begin_rounds(self, numbers: Sequence[int]) -> None:
        """Get ready for these rounds."""
        self.begin(numbers[0])
        if len(set(numbers)) > 1:
            self.number = torch.tensor(numbers)  # type: ignore[assignment]  # [K], as `Traits` says

    @property
    def optimizer_state(self) -> dict[str, dict[str, Any]]:
        """What the optimiser keeps, by name of the parameter: of each peer [K, …], or one number for all."""
        state = self.optimizer_step.optimizer.state
        return {name: state[p] for name, p in self.named.items() if p in state}

    @optimizer_state.setter
    def optimizer_state(self, kept: dict[str, dict[str, Any]]) -> None:
        for name, values in kept.items():
            self.optimizer_step.optimizer.state[self.named[name]] = values


class OptimizerStates:
    """What the optimisers of n peers keep from round to round, whatever stack they are in, a row for each of them.

    An optimiser that counts its steps counts for all in a stack alike: peers may be stacked whose `age` is the same.
    """

    def __init__(self, peers: int) -> None:
        self._peers = peers
        self._rows: dict[str, dict[str, Tensor]] = {}  # [n, …], by parameter
        self._common: dict[int, dict[str, dict[str, Tensor]]] = {}  # by peer: counts, by parameter
        self._age: dict[int, Hashable] = {}

    def age(self, peer: int) -> Hashable:
        """What the peer's optimiser counts; None before its first step."""
        return self._age.get(peer)

    def load(self, stack: RoundStack) -> None:
        """Give the stack's optimiser what its peers' have kept."""
        ids = list(stack.members)
        if self._age.get(ids[0]) is None:
            return
        common = self._common[ids[0]]
        stack.optimizer_state = {
            name: {key: rows[ids] for key, rows in self._rows.get(name, {}).items()}
            | {key: value.clone() for key, value in common.get(name, {}).items()}
            for name in {**self._rows, **common}
        }

    def keep(self, stack: RoundStack) -> None:
        """Take over what the stack's optimiser and its peers keep."""
        stack.state.put_back()
        ids, common = list(stack.members), {}
        for name, values in stack.optimizer_state.items():
            tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
            common[name] = {key: value for key, value in tensors.items() if not value.dim()}
            rows = self._rows.setdefault(name, {})
            for key, value in tensors.items():
                if value.dim():
                    rows.setdefault(key, value.new_zeros(self._peers, *value.shape[1:]))[ids] = value
        if common:
            age = tuple((key, float(value)) for own in common.values() for key, value in own.items())
            self._common.update(dict.fromkeys(ids, common))
            self._age.update(dict.fromkeys(ids, age))
