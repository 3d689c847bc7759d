"""Experiment: everything that decides a training run's result, whichever engine carries it out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from labkit.algorithms.base import Algorithm
from labkit.algorithms.traits import Traits
from labkit.data import Dataset, batches
from labkit.data.batches import Batches, Epochs, Indices, StreamBatches, StreamShard
from labkit.data.inputs import Inputs
from labkit.engines.budget import SELDOM, Budget
from labkit.engines.control import Control
from labkit.engines.modules import copied, give_copies, give_unpacked
from labkit.errors import DataError, DivergenceError
from labkit.history.memory import MemoryLedger
from labkit.history.rows import Reporter, Row
from labkit.text import some

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Schedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
Loss = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[Tensor, Tensor], Any]  # of the outputs and targets of all test examples: a number
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}  # that autocast may compute in
T = TypeVar("T")
_PUBLIC = 1 << 40  # the public examples' stream, as if it were the one of a peer that nobody is
_ELECTION = 1 << 41  # the choice of those who take part


@dataclass(frozen=True)
class Findings:
    """What a trial of models, loss and optimisers found out: how they have to be treated.

    `unstacked` says why peers are computed one by one although the engine would stack them. `unused` are parameters
    without a part in the loss. `classes` is the dimension of the outputs, from the end, that has a score of each class,
    and `labels` says whether each output is a logit by itself, where the algorithm compares predictions.
    """

    unstacked: str = ""
    changes_inputs: bool = False  # a model changes its inputs in place
    changes_targets: bool = False  # the loss changes its targets in place
    unused: tuple[str, ...] = ()
    classes: int | None = None
    labels: bool = False


@dataclass(frozen=True)
class Experiment:
    """What is trained on what by which algorithms; equal experiments give equal results on every engine.

    `models` are the modules to start from, `algorithms` and `optimizers` what peers follow: one for all, or one each.
    `kinds` numbers the peers' architectures (empty when all have the same): peers of one kind can be stacked.
    """

    models: tuple[nn.Module, ...]
    dataset: Dataset
    algorithms: tuple[Algorithm, ...]
    traits: Traits  # of the first peer's algorithm; those that hold for the run are the same in all
    shards: Sequence[Indices | StreamShard]  # each peer's training examples
    rounds: int
    batch_size: int
    seed: int
    optimizers: tuple[OptimizerFactory, ...]
    loss: Loss
    evaluate_every: int
    kinds: tuple[int, ...] = ()
    common_order: bool = False  # everyone sees the same examples in the same order
    groups: tuple[int, ...] = ()  # by peer; those of one number see the same examples in the same order
    public: Tensor | None = None  # inputs [N, …] that everyone may see, without labels
    sharding: str = ""  # how the examples were dealt, in words
    schedule: Schedule | None = None  # made with each optimiser, and stepped after each of its steps
    precision: str | None = None  # "bf16" or "fp16", of the forward pass and the loss
    clip: float | None = None  # the largest norm of a peer's gradient
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    keeps_best: bool = False  # whether of each peer the model that scored best is kept
    client_tests: Sequence[Indices] = ()  # each peer's own test examples, among those for training
    epochs: int | None = None  # how often each peer goes through its whole shard; None: batches never end
    budget: Budget | None = None  # ends the run between two rounds, at the latest after the last of `rounds`
    memory: bool = False  # whether it is counted what peers hold
    found: Findings = Findings()

    @property
    def peers(self) -> int:
        return len(self.shards)

    @property
    def title(self) -> str:
        """What is trained, in words that do not change with time."""
        names = ", ".join(dict.fromkeys(type(it).__name__ for it in self.algorithms))
        return f"Run: {names}, {self.peers} peers, {self.rounds} rounds"

    @property
    def algorithm(self) -> Algorithm:
        """The first peer's algorithm, whose settings hold for the run: who takes part, how it is evaluated."""
        return self.algorithms[0]

    def algorithm_of(self, peer: int) -> Algorithm:
        return _own(self.algorithms, peer)

    def optimizer_of(self, peer: int) -> OptimizerFactory:
        return _own(self.optimizers, peer)

    def optimizer_like(self, peer: int = 0) -> torch.optim.Optimizer:
        """An optimiser as the peer's, of tensors of the same shapes that hold nothing but zero."""
        own = (p for p in self.model_of(peer).parameters() if p.requires_grad)
        return self.optimizer_of(peer)([torch.zeros((), dtype=p.dtype).expand(p.shape).requires_grad_() for p in own])

    def model_of(self, peer: int) -> nn.Module:
        """The module that peer `peer` starts from; not to be trained itself."""
        return _own(self.models, peer)

    def fresh_model(self, peer: int = 0) -> nn.Module:
        """A copy of the peer's model as it stands before the first round."""
        model = copied(self.model_of(peer))
        if self.found.changes_inputs:
            give_copies(model)
        several = not self.dataset.stackable and isinstance(self.dataset.trial()[0], Inputs)
        return give_unpacked(model) if several else model

    @property
    def alike(self) -> bool:
        """Whether all peers have the same parameters before the first round."""
        return len(self.models) == 1

    def kind(self, peer: int) -> tuple[int, int, int]:
        """Peers of one kind can be stacked: they have the same architecture, algorithm and optimiser."""
        return (
            self.kinds[peer] if self.kinds else 0,
            _first(self.algorithms, peer),
            _first(self.optimizers, peer),
        )

    def training_key(self, peer: int) -> tuple[Hashable, Hashable]:
        """The peer's optimiser and loss as what they do, for each run of a notebook cell makes them anew."""
        made = self.optimizer_like(peer)
        return (type(made), repr(made.defaults)), getattr(self.loss, "__code__", self.loss)

    @property
    def stackable(self) -> bool:
        """Whether peers of one kind can be computed as one, stacked.

        Not where batches have different sizes, as at the end of an epoch, or are loaded one after the other, nor where
        each peer may leave out steps of its own, as loss scaling does, nor where a trial found that it goes wrong.
        """
        return not self.found.unstacked and self.epochs is None and self.precision != "fp16" and self.dataset.stackable

    # -- who takes part

    @property
    def served(self) -> bool:
        """Whether a server holds the model and peers are its clients, made anew for every round they take part in."""
        return self.traits.participation is not None

    @property
    def split(self) -> bool:
        """Whether each peer holds a part of one model."""
        return self.traits.holds is not None

    @property
    def present(self) -> int:
        """How many peers take part in each round."""
        return max(1, round((self.traits.participation or 1.0) * self.peers))

    @property
    def sampled(self) -> bool:
        """Whether only some of the peers take part in each round, others in every one."""
        return self.present < self.peers

    def participants(self, round: int, among: Sequence[range]) -> list[Sequence[int]]:
        """The peers of each block that take part, ascending: a sample without replacement that the seed decides."""
        if not self.sampled:
            return [*among]
        random = np.random.default_rng([self.seed, _ELECTION, round])
        chosen = sorted(random.choice(self.peers, self.present, replace=False).tolist())
        return [chosen[bisect_left(chosen, block.start) : bisect_left(chosen, block.stop)] for block in among]

    # -- data

    def examples(self, peer: int) -> int:
        """How many training examples peer `peer` holds."""
        return len(self.shards[peer])

    def indices(self, peer: int, start: int = 0) -> Batches:
        """The peer's batches from batch `start` on, as indices [B] into the training examples.

        They never end, or after `epochs` passes over its shard. Where passes count, for the end of the run or of a
        round's local work, they have all examples, and their last batches what is left.
        """
        order = self.seed, 0 if self.common_order else self.groups[peer] if self.groups else peer
        shard = self.shards[peer]
        if isinstance(shard, StreamShard):
            return StreamBatches(shard, self.batch_size, *order, self.epochs, start)
        if self.epochs is not None or self.traits.epochs is not None:
            return Epochs(shard, self.batch_size, *order, self.epochs, start)
        return batches(shard, self.batch_size, *order, start)

    def per_epoch(self, peer: int) -> int:
        """How many batches one pass over the peer's shard has, in the local work of a round."""
        examples = self.examples(peer)
        whole_pass = self.traits.epochs is not None and not isinstance(self.shards[peer], StreamShard)
        return -(-examples // self.batch_size) if whole_pass else max(1, examples // self.batch_size)

    def left_over(self, peer: int) -> int | None:
        """How many examples the peer's shard has, if the last batch of its passes in a round is a smaller one."""
        if self.traits.epochs is None or not self.examples(peer) % self.batch_size:
            return None
        return self.examples(peer)

    def local_steps(self, peer: int) -> int:
        """Gradient steps that peer `peer` takes in a round it takes part in."""
        passes = self.traits.epochs
        return self.traits.every if passes is None else passes * self.per_epoch(peer)

    def dealt(self, peer: int, round: int) -> int:
        """How many batches peer `peer` has in this round: fewer, or none, once its epochs come to their end."""
        most = self.traits.every
        if self.epochs is None:
            return most
        batches = self.epochs * -(-self.examples(peer) // self.batch_size)
        return min(most, max(0, batches - (round - 1) * most))

    def working(self, round: int) -> int:
        """How many peers have batches in this round."""
        return self.peers if self.epochs is None else sum(self.dealt(k, round) > 0 for k in range(self.peers))

    @property
    def steps_per_round(self) -> float:
        """Gradient steps that one of the registered peers takes in a round, on average."""
        return fmean(map(self.local_steps, range(self.peers))) * self.present / self.peers

    def public_batches(self, round: int, device: torch.device) -> Iterator[Tensor]:
        """The batches of public inputs [B, …] of this round, the same for every peer."""
        if self.public is None:
            raise DataError(
                f"{type(self.algorithm).__name__} needs inputs that all peers may see: give public=…, for example "
                "private, public = dataset.hold_out(0.2)."
            )
        inputs = self.public.to(device)
        for indices in batches(range(len(inputs)), self.batch_size, self.seed, _PUBLIC + round):
            yield inputs[torch.from_numpy(indices).to(device)]

    def models_of(self, build: Callable[[int], nn.Module]) -> Models:
        """The trained models as the user gets them: one for each peer, or the only one that outlives a round."""
        return Models(1 if self.sampled or self.split else self.peers, build)

    @property
    def unsplit(self) -> Experiment:
        """The same with peers who hold whole models."""
        return replace(self, traits=replace(self.traits, holds=None)) if self.split else self

    def joined(self, parts: Sequence[dict[str, Tensor]]) -> nn.Module:
        """The whole model that the parts of all peers make."""
        assert self.traits.holds is not None
        model = self.fresh_model()
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, whole in self.traits.holds.join([*parts], named).items():
                named[name].copy_(whole)
        return model

    def evaluates(self, round: int, due: bool = False) -> bool:
        """Whether the models are tested after this round (counted from 1); the last one is, if there are tests.

        With a budget and no `evaluate_every` it decides when they are `due`, besides.
        """
        due = due or round == self.rounds or round % (self.evaluate_every or SELDOM) == 0
        return due and (bool(self.client_tests) or self.dataset.tested)

    def ended(self, rows: Sequence[Row]) -> bool:
        """Whether a run with these rows has come to its end, and was not stopped before."""
        if not rows:
            return False
        last, budget = rows[-1], self.budget
        if last.round >= self.rounds:
            return True
        return budget is not None and budget.share(last.steps, last.bytes, last.seconds) >= 1


class Models(Sequence[nn.Module]):
    """Trained models, each built when it is first asked for: of ten thousand peers few are looked at."""

    def __init__(self, count: int, build: Callable[[int], nn.Module]) -> None:
        self._build = build
        self._built: dict[int, nn.Module] = {}
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> nn.Module: ...
    @overload
    def __getitem__(self, at: slice) -> list[nn.Module]: ...
    def __getitem__(self, at: int | slice) -> nn.Module | list[nn.Module]:
        if isinstance(at, slice):
            return [self[k] for k in range(len(self))[at]]
        k = range(len(self))[at]
        if k not in self._built:
            self._built[k] = self._build(k)
        return self._built[k]

    def __reduce__(self) -> tuple[Any, ...]:
        """Saved or sent elsewhere it is a list of the modules; the peers that they come from stay here."""
        return list, (list(self),)

    def __repr__(self) -> str:
        return some(len(self), "trained model")


@dataclass(frozen=True)
class Outcome:
    """What an engine has besides the rows: the trained models, and a Timeline of the peers' work where one was kept.

    `best` are the models as they scored best on the tests, where these were to be kept. `staleness` [n, rounds] is, of
    asynchronous peers, how many changes each request had not seen. A run that fails under way has the models of its
    last whole round, and the `error` that whoever asked for it is to raise.
    """

    models: Sequence[nn.Module] = field(default_factory=list)
    timeline: Any = None
    staleness: Any = None
    best: Sequence[nn.Module] = field(default_factory=list)
    error: Exception | None = None
    memory: MemoryLedger | None = None


class Engine(Protocol):
    """One way to carry out an experiment."""

    @property
    def name(self) -> str:
        """How plots and histories call the engine."""

    @property
    def clock(self) -> str:
        """Whose seconds it reports: "wall" or "virtual"."""

    @property
    def ledger(self) -> str:
        """Whether its bytes are "measured" on the wire or evaluated by "formula"."""

    def run(self, experiment: Experiment, report: Reporter, control: Control) -> Outcome:
        """Train, reporting a row per round and obeying `control` between rounds; models of all peers, or the server's.

        A server's clients have its model: as many references to it as there are peers when all of them take part in
        every round, and one otherwise.
        """


def require_finite(losses: Iterable[float], round: int, ids: Iterable[int]) -> None:
    """Raise DivergenceError naming the first peer whose loss is NaN or infinite."""
    for peer, loss in zip(ids, losses, strict=True):
        if not np.isfinite(loss):
            raise DivergenceError(
                f"The loss of peer {peer} became {loss} in round {round}: lower the learning rate, clip the "
                "gradients, or look for NaN in the data, and for batches of which the loss leaves out every target."
            )


def _own(each: Sequence[T], peer: int) -> T:
    return each[0] if len(each) == 1 else each[peer]


def _first(each: Sequence[Any], peer: int) -> int:
    """The number of the first peer that has the same thing: the same object, or an equal algorithm."""
    if len(each) == 1:
        return 0
    mine = each[peer]
    return next(k for k, other in enumerate(each) if other is mine or _equal(other, mine))


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)
