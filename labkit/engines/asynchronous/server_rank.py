"""Server: asynchronous ranks that push to one server, a service of rank 0 that answers whoever comes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import NamedTuple, cast

import torch
from torch import Tensor

from labkit import tree
from labkit.cluster.gang.rank import own_host
from labkit.engines.asynchronous.connections import Service
from labkit.engines.asynchronous.request_handlers import (
    Params,
    ServerHandler,
    StalenessGate,
    builder,
    require,
    trainable,
)
from labkit.engines.asynchronous.train_rank import AsyncRank
from labkit.exchange import Push, Request
from labkit.exchange.requests import unwrapped, wrapped
from labkit.history.rows import Row
from labkit.tree import Tree

_CPU = torch.device("cpu")


class FinishedRound(NamedTuple):
    """The slowest rank has finished a round: the server's weights then, if they are to be tested."""

    round: int
    weights: Params | None
    sent: float
    seconds: float


class PushService(Service):
    """The server: a rank's K peers push at once, and are answered when the policy lets the rank go on."""

    def __init__(self, rank: AsyncRank) -> None:
        experiment, ranks = rank.experiment, range(len(rank.blocks))
        self.handler = ServerHandler(experiment, _CPU)
        self.staleness: list[list[int]] = [[] for _ in range(experiment.peers)]
        self.finished: SimpleQueue[FinishedRound] = SimpleQueue()
        self._rank, self._blocks = rank, rank.blocks
        self._gate = StalenessGate(ranks, experiment.traits.policy.bound)
        self._free: set[int] = set()  # the ranks that may go on, and were not answered yet
        self._received = 0
        super().__init__(own_host(), ranks, rank.patience)

    def answer(self, rank: int, head: int, body: bytes) -> tuple[int, bytes]:
        pushes = Push(unwrapped(body, self.handler.server.weights)).split()
        with self.changed:
            self._received += len(body)
            number, before = self._gate.done[rank] + 1, self._gate.slowest
            for peer, push in zip(self._blocks[rank], pushes, strict=True):
                self.staleness[peer].append(self.handler.take(peer, number, push))
            self._release(self._gate.finish(rank))
            if self._gate.slowest > before:
                self._note(self._gate.slowest)
            self.until(lambda: rank in self._free)
            self._free.discard(rank)
            for peer in self._blocks[rank]:
                self.handler.reply(peer)
            return self.handler.server.version, wrapped(self.handler.server.weights)

    def left(self, rank: int) -> None:
        for peer in self._blocks[rank]:
            self.handler.leave(peer)
        self._release(self._gate.leave(rank))

    def _release(self, ranks: Sequence[int]) -> None:
        self._free.update(ranks)
        self.changed.notify_all()

    def _note(self, round: int) -> None:
        tested = self._rank.experiment.evaluates(round)
        weights = tree.map(torch.clone, self.handler.server.weights) if tested else None
        self.finished.put(FinishedRound(round, weights, self._received, self._rank.clock.seconds))


class ServerRank(AsyncRank):
    """One rank's part in it. Rank 0 reports for all: what the server has received, and when a round was over."""

    service: PushService | None = None

    def connect(self, stack: ExitStack) -> None:
        if self.rank == 0:
            self.service = PushService(self)
            stack.callback(self.service.close)
        (self._server,) = self.connections(stack, to=[0])
        self._like = trainable(self.experiment.models[0], _CPU)
        self._parts: dict[int, Row] = {}  # of rank 0's peers, of rounds that others have not finished

    def answer(self, number: int, request: Request) -> Tree:
        """Push, and receive the server's weights [1, …]."""
        return cast(Push, require(request, Push)).ask(self._server, self._like)

    def adopt(self, rate: float) -> None:
        if self.service is not None:
            with self.service.changed:
                self.service.handler.adopt(rate)

    def finish(self, part: Row) -> Iterator[Row]:
        if self.service is None:
            yield part
            return
        self._parts[part.round] = part
        yield from self._known(self.service)

    def leave(self) -> Iterator[Row]:
        """Rank 0 goes on serving until all others have left, too."""
        self._server.leave()
        if self.service is not None:
            while not self.served():
                yield from self._known(self.service)
            yield from self._known(self.service)

    def result(self) -> tuple[list[dict[str, Tensor]], list[list[int]]]:
        """The server's model, and of every peer's pushes the staleness."""
        if self.service is None:
            return [], []
        model = builder(self.experiment, self.service.handler.params)(0)
        return [dict(model.state_dict())], self.service.staleness

    def _known(self, service: PushService) -> Iterator[Row]:
        while True:
            try:
                round, weights, sent, seconds = service.finished.get_nowait()
            except Empty:
                return
            if round in self._parts:  # else this rank has stopped before
                part = replace(self._parts.pop(round), bytes=sent, seconds=seconds)
                if weights is not None:
                    everybody = range(self.experiment.peers)
                    part = self.scores([0], dict.fromkeys(everybody, weights), everybody).put_into(part)
                yield part
