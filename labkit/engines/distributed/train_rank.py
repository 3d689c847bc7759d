"""Ranks: what each worker of the cluster engine does, inside the gang's process group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from labkit import tree
from labkit.cluster.gang.rank import leave
from labkit.data.loading import loaders_closed
from labkit.data.randomness import Randomness
from labkit.engines.barriers import exhaust
from labkit.engines.clock import Clock
from labkit.engines.distributed.checkpoints import Saver, Store
from labkit.engines.distributed.data_parallel import DDP, DataParallelPeer, data_parallel, noise_of
from labkit.engines.distributed.exchanging import Exchanging, exchanging
from labkit.engines.distributed.model_parallel import model_parallel
from labkit.engines.distributed.reporting import Reports, Result, Stopwatch, common_moment, said_by_all
from labkit.engines.distributed.steering import Steering
from labkit.engines.experiment import Experiment
from labkit.engines.local_peers import LocalPeers
from labkit.engines.peer import OnePeer
from labkit.engines.rounds import train
from labkit.errors import ExchangeError
from labkit.exchange import Message
from labkit.exchange.group import RankGroup
from labkit.history.rows import Event, Row
from labkit.tree import Tree

_ROUND_TRIPS = 5  # when ranks meet again and again, and nothing depends on who comes first, it need not be so exact


@dataclass(frozen=True)
class RankSettings:
    """How the ranks of a run go about it: `alone` are peers that are no part of a stack, `device` is theirs."""

    ddp: DDP | None
    report_every: float | None
    checkpoint_every: int | None
    alone: bool
    device: str | None = None
    timeout: float | None = None  # of a wait for the others' messages


@loaders_closed()
def train_rank(experiment: Experiment, blocks: list[range], settings: RankSettings, store: Store) -> Result:
    """Train this rank's block of peers, from the beginning or from a checkpoint."""
    device = torch.device(settings.device or ("cuda" if "nccl" in dist.get_backend_config() else "cpu"))
    group = RankGroup(tuple(len(block) for block in blocks), timeout=settings.timeout)
    members = blocks[group.rank]
    single: Callable[..., OnePeer] | None = OnePeer if settings.alone else None
    if settings.ddp is not None and data_parallel(experiment, blocks, device, settings.ddp):
        made = partial(DataParallelPeer, group=group, ddp=settings.ddp, noise=noise_of(experiment))
        experiment, single = exchanging(experiment), made
    elif settings.ddp is not None and (form := model_parallel(experiment, blocks)) is not None:
        experiment, single = exchanging(experiment), partial(form, algorithm=experiment.algorithm, group=group)
    checkpoint = store.load(experiment, members)
    latest = partial(_latest, device)
    local = LocalPeers(experiment, members, device, single=single, parts=checkpoint.parts, agree=latest)
    group.sent = checkpoint.sent
    clock = Clock(common_moment(_ROUND_TRIPS, store.elapsed), latest)
    watch = Stopwatch(lambda: float(local.work.sum()), clock, group.rank)
    saver = Saver(store, settings.checkpoint_every, local, members, device)
    steering = Steering(device, clock, checkpoint.number + 1)
    reports = Reports(watch, settings.report_every, keep=store.in_files)
    runtime = OnRank(experiment, blocks, local, group, clock, watch, steering, reports, saver)
    leave(partial(_at_last, experiment, local, watch, reports))
    with torch.random.fork_rng(), Randomness(experiment.seed, members.start):
        torch.manual_seed(experiment.seed + members.start)
        checkpoint.restore_random(device)
        exhaust(train(experiment, local, runtime, checkpoint.number))
    reports.flush()
    return _result(experiment, local, watch, group.rank)


def _result(experiment: Experiment, local: LocalPeers, watch: Stopwatch, rank: int) -> Result:
    kept = local.members[: 1 if rank == 0 else 0] if experiment.served else local.members
    states = [local.part(k) if experiment.split else dict(local.model(k).state_dict()) for k in kept]
    by_torch = isinstance(experiment.algorithm, Exchanging)
    return Result(states, watch.intervals, best=local.best.states, memory=local.memory, by_torch=by_torch)


def _at_last(experiment: Experiment, local: LocalPeers, watch: Stopwatch, reports: Reports) -> dict[int, Result]:
    """What a rank that fails, or is ended, has had after each of the whole rounds that it can go back to."""
    reports.flush()
    found = {}
    for number in local.rounds_kept:
        local.rewind(number)
        own = _result(experiment, local, watch, rank=0)
        found[number] = own._replace(states=[tree.map(torch.clone, state) for state in own.states])
    return found


@dataclass
class OnRank:
    """The runtime of a rank: messages become collectives of its `group`, and all ranks agree on the user's wishes.

    In the first round the ranks compare what they are about to send, and what they share as it ends: gloo would wait,
    or sum what does not fit.
    """

    experiment: Experiment
    blocks: list[range]  # each rank's peers
    local: LocalPeers
    group: RankGroup
    clock: Clock
    watch: Stopwatch
    steering: Steering
    reports: Reports
    saver: Saver
    first_round: bool = True

    def __post_init__(self) -> None:
        self._answer = self.local.joined(self.watch.timed(lambda message: message.collective(self.group)))
        everybody = RankGroup(self.group.blocks, made=self.group.made)  # predictions are no part of what training sends
        self.predict = self.local.joined(lambda message: message.collective(everybody))

    @property
    def sent(self) -> float:
        return self.group.sent

    @property
    def rates(self) -> tuple[float, ...]:
        return self.steering.rates

    def proceed(self, number: int) -> bool:
        return self.steering.proceed(number)

    def begin(self, number: int) -> None:
        self.group.blocks = tuple(map(len, self.experiment.participants(number, self.blocks)))
        self.watch.begin()

    def answer(self, messages: list[Message]) -> Sequence[Tree]:
        if self.first_round:
            first = self.local.first(messages)
            named = {"": first.value} if isinstance(first.value, Tensor) else first.value
            shapes = ", ".join(f"{name} {list(leaf.shape)}".strip() for name, leaf in named.items())
            _compare(first.meeting, f"{messages[0].name} of {shapes}", first.row_of(self.local.members.start))
        sent, present = self.group.sent, len(self.local.present)
        replies = self._answer(messages)
        if self.experiment.served:  # the workers stand for clients, who would send their server other bytes than these
            self.group.sent = sent + self.local.cost(messages).bytes(present) * present
        return replies

    def end(self) -> None:
        self.watch.end(self.local.exchanged)
        if self.first_round:
            _compare("", "nothing more in its round")

    def report(self, news: Row | Event) -> None:
        if isinstance(news, Event):
            self.reports.add(news)
            return
        if self.first_round:
            self.first_round = False
            self.local.shared_state.require_same(said_by_all(self.local.shared_state.digest()))
        self.reports.add(replace(news, bytes=self.sent, steps=self.local.taken))

    def summed(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        return self.steering.summed(numbers)

    def checkpoint(self, number: int) -> None:
        if self.saver.due(number):
            self.reports.flush()  # rounds that nobody goes through again must have been reported
            self.saver.save(number, self.sent, self.reports.unheard())


def _compare(meeting: str, sends: str, row: int = 0) -> None:
    """Raise ExchangeError unless all ranks are at the same meeting, and those of one row send the same there."""
    said = said_by_all((meeting, sends, row))
    for rank, (other, its_own, its_row) in enumerate(said):
        first = next(k for k, it in enumerate(said) if it[2] == its_row or it[0] != other)
        if said[first][:2] != (other, its_own):
            raise ExchangeError(
                f"At one barrier rank {first} sends {said[first][1]}, and rank {rank} {its_own}: "
                "every peer's round must yield the same messages of the same shapes in the same order."
            )


def _latest(device: torch.device, seconds: float) -> float:
    """The largest of what all ranks say."""
    said = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return float(said)
