"""Ranks: what each worker of the cluster engine does when peers meet at no barrier, but ask for what they need.

A worker's peers are one machine: they take their steps together, and the K of them ask at once. Who comes first is up
to the machines and not to the seed, so that two runs differ, unless all wait for all (BSP).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from time import monotonic, perf_counter, sleep
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from labkit.cluster import deadlines
from labkit.cluster.gang.rank import leave
from labkit.data.loading import loaders_closed
from labkit.data.randomness import Randomness
from labkit.engines.asynchronous.async_peers import require_request
from labkit.engines.asynchronous.connections import Address, RankConnection, Service, require_patience
from labkit.engines.asynchronous.request_handlers import Params, builder
from labkit.engines.barriers import exhaust
from labkit.engines.clock import Clock
from labkit.engines.control import Wish
from labkit.engines.distributed.reporting import (
    MOST_INTERVALS,
    Reports,
    Result,
    Stopwatch,
    common_moment,
    wish,
    wished_rates,
)
from labkit.engines.evaluation import NOTHING, Best, Evaluation, Scores
from labkit.engines.experiment import Experiment
from labkit.engines.local_peers import LocalPeers
from labkit.engines.peer import OnePeer
from labkit.exchange import Message, Request
from labkit.history.rows import Event, Row
from labkit.tree import Tree


class AsyncRank(ABC):
    """One rank of an asynchronous run: it trains the peers `blocks[rank]`, and its `service` answers requests.

    `patience` limits in seconds how long it waits for a word of the others; a pause does not count. The `clock` of its
    rows stands still in pauses and while it evaluates; other ranks may go on meanwhile.
    """

    service: Service | None = None  # if this rank has one

    def __init__(self, experiment: Experiment, blocks: Sequence[range], patience: float, device: torch.device) -> None:
        self.experiment, self.blocks, self.patience, self.device = experiment, blocks, patience, device
        self.rank, self.best = dist.get_rank(), Best()
        self.members, self.taken = blocks[self.rank], 0.0

    # -- what ranks with and without a server do each in its own way

    @abstractmethod
    def connect(self, stack: ExitStack) -> None:
        """Open the services, and the connections to them, which the stack closes."""

    @abstractmethod
    def answer(self, number: int, request: Request) -> Tree:
        """The reply to the stacked requests of this rank's peers, at the end of round `number`."""

    @abstractmethod
    def finish(self, part: Row) -> Iterator[Row]:
        """The round is over, with this part of its row; the parts that are known whole by now."""

    @abstractmethod
    def leave(self) -> Iterator[Row]:
        """Ask nothing more, and wait until nobody asks this rank; the last parts of rows."""

    @abstractmethod
    def result(self) -> tuple[list[dict[str, Tensor]], list[list[int]]]:
        """The states of the models that this rank answers for, and staleness by peer."""

    @abstractmethod
    def adopt(self, rate: float) -> None:
        """Take this learning rate, if one is kept here besides the peers'."""

    # -- what they share

    def start(self) -> None:
        """The ranks meet, and count their seconds from this moment."""
        self.began = common_moment()
        self.clock = Clock(self.began)

    @property
    def seconds(self) -> float:
        """Since the ranks began, pauses included."""
        return perf_counter() - self.began

    def connections(self, stack: ExitStack, to: Sequence[int]) -> list[RankConnection]:
        """Connections to the services of these ranks, once every rank has opened its own."""
        told: list[Any] = [None] * len(self.blocks)
        dist.all_gather_object(told, None if self.service is None else self.service.address)
        made = []
        for rank in to:
            made.append(RankConnection(Address(*told[rank]), self.rank, self.patience, lambda: wish() is Wish.PAUSE))
            stack.callback(made[-1].close)
        return made

    def served(self) -> bool:
        """Wait a moment; True when all ranks have left this one's service.

        Raises what the service failed with, and ExchangeError when nobody has asked for too long.
        """
        assert self.service is not None
        if wish() is Wish.PAUSE:
            self.service.heard = monotonic()
        over = self.service.wait(deadlines.WISHES)
        require_patience(monotonic() - self.service.heard, self.patience)
        return over

    def scores(self, peers: Sequence[int], params: Mapping[int, Params], clients: Iterable[int]) -> Scores:
        """What the models of these peers score with these parameters, and on their own test examples the clients'."""
        with self.clock.stopped():
            build, evaluation = builder(self.experiment, params.__getitem__), self._evaluation
            found = NOTHING
            if len(evaluation.targets):
                found = Scores.joined([evaluation.alone(build(k), k) for k in peers])
                if self.experiment.keeps_best:
                    self.best.note(found, peers, build)
            return found._replace(metrics=found.metrics | evaluation.clients(build, clients))

    @cached_property
    def _evaluation(self) -> Evaluation:
        return Evaluation(self.experiment, self.device)

    def rounds(self, local: LocalPeers, watch: Stopwatch) -> Iterator[Row | Event]:
        """All rounds of this rank's peers, until the last of the others has finished too."""
        with torch.random.fork_rng(), Randomness(self.experiment.seed, self.members.start):
            torch.manual_seed(self.experiment.seed + self.members.start)
            for number in range(1, self.experiment.rounds + 1):
                if not self._proceed():
                    break
                rates = wished_rates()
                for event in local.adopt(rates, number, self.clock.seconds):
                    self.adopt(rates[-1])
                    yield event
                begun, asked = self._round(local, number)
                watch.intervals.append((begun, asked))
                watch.interval(begun, asked, self.seconds)
                measured = local.measured()
                self.taken += measured.steps or len(self.members)  # a gradient that is pushed is a step
                part = Row(number, measured.losses, None, 0.0, 0.0, steps=self.taken, logged=measured.logged)
                yield from self.finish(part)
        yield from self.leave()

    def _proceed(self) -> bool:
        """Wait while paused; False once the run is to stop."""
        if wish() is Wish.PAUSE:
            with self.clock.stopped():
                while wish() is Wish.PAUSE:
                    sleep(deadlines.WISHES)
        return wish() is Wish.GO

    def _round(self, local: LocalPeers, number: int) -> tuple[float, float]:
        """One round of this rank's peers; when they began to compute, and had what they asked with."""
        begun, asked, algorithm = self.seconds, [], self.experiment.algorithm

        def answer(message: Message) -> Tree:
            asked.append(self.seconds)
            return self.answer(number, require_request(message if len(asked) == 1 else None, algorithm))

        local.begin(number)
        exhaust(local.round(local.joined(answer)))
        if not asked:
            require_request(None, algorithm)
        local.end()
        return begun, asked[0]


@loaders_closed()
def train_asynchronously(
    kind: type[AsyncRank],
    experiment: Experiment,
    blocks: list[range],
    patience: float,
    every: float | None,
    on: str | None = None,
) -> Result:
    """Train this rank's block of peers; it obeys what the user wishes by itself."""
    device = torch.device(on or ("cuda" if "nccl" in dist.get_backend_config() else "cpu"))
    rank = kind(experiment, blocks, patience, device)
    alone = max(map(len, blocks)) == 1 or not experiment.stackable
    local = LocalPeers(experiment, rank.members, device, single=OnePeer if alone else None)
    with ExitStack() as stack:
        rank.connect(stack)
        rank.start()
        watch = Stopwatch(lambda: 0, Clock(rank.began), rank.rank)
        reports = Reports(watch, every)
        leave(partial(_at_last, rank, reports))
        try:
            for news in rank.rounds(local, watch):
                reports.add(news)
        except ConnectionError:  # ranks hang up on each other when one's service has failed: then that is why
            if rank.service is not None and rank.service.failure is not None:
                raise rank.service.failure from None
            raise
        reports.flush()
        states, staleness = rank.result()
        return Result(states, watch.intervals[:MOST_INTERVALS], staleness, rank.best.states)


def _at_last(rank: AsyncRank, reports: Reports) -> dict[int, Result]:
    """What a rank that fails, or is ended, has reached; its peers have no common round."""
    reports.flush()
    states, staleness = rank.result()
    return {0: Result(states, [], staleness, rank.best.states)}
