"""Central: a run with a server, which is a thread of rank 0 that answers whoever comes first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from labkit import tree
from labkit.engines.asynchronous.connections import Address, Answers, Seat, Service
from labkit.engines.asynchronous.request_handlers import Params, ServerDesk, builder, require, trainable
from labkit.engines.asynchronous.staleness_gate import Pace
from labkit.engines.distributed.reporting import LOOK, RowPart
from labkit.exchange import Push, Request
from labkit.exchange.requests import unwrapped, wrapped
from labkit.tree import Tree

_CPU = torch.device("cpu")


class Finished(NamedTuple):
    """The slowest rank has finished a round: the server's weights then, if they are to be tested."""

    round: int
    weights: Params | None
    sent: float
    seconds: float


class Office:
    """The server as a clerk: a rank's K peers push at once, and are answered when the policy lets the rank go on."""

    def __init__(self, seat: Seat) -> None:
        experiment = seat.experiment
        self.desk = ServerDesk(experiment, _CPU)
        self.staleness: list[list[int]] = [[] for _ in range(experiment.peers)]
        self.finished: SimpleQueue[Finished] = SimpleQueue()
        self._seat = seat
        self._pace = Pace(range(len(seat.blocks)), experiment.traits.policy.bound)
        self._received = 0

    def heard(self, rank: int, head: int, body: bytes) -> Answers:
        self._received += len(body)
        pushes = Push(unwrapped(body, self.desk.server.weights)).split()
        for peer, push in zip(self._seat.blocks[rank], pushes, strict=True):
            self.staleness[peer].append(self.desk.take(peer, self._pace.done[rank] + 1, push))
        before = self._pace.slowest
        free = self._pace.finish(rank)
        if self._pace.slowest > before:
            self._note(self._pace.slowest)
        return self._answers(free)

    def left(self, rank: int) -> Answers:
        for peer in self._seat.blocks[rank]:
            self.desk.leave(peer)
        return self._answers(self._pace.leave(rank))

    def _answers(self, free: list[int]) -> Answers:
        if not free:
            return []
        for rank in free:
            for peer in self._seat.blocks[rank]:
                self.desk.reply(peer)
        weights = wrapped(self.desk.server.weights)
        return [(rank, self.desk.server.version, weights) for rank in free]

    def _note(self, round: int) -> None:
        tested = self._seat.experiment.evaluates(round)
        weights = tree.map(torch.clone, self.desk.server.weights) if tested else None
        self.finished.put(Finished(round, weights, self._received, self._seat.seconds))


class Central:
    """One rank's part in it. What the server has received is the ledger: rank 0 reports it for all."""

    def __init__(self, seat: Seat, stack: ExitStack) -> None:
        self._seat = seat
        self._losses: dict[int, tuple[float, ...]] = {}  # of rank 0's peers, in rounds that others have not finished
        self._office: Office | None = None
        address: Address | None = None
        if seat.rank == 0:
            self._office = Office(seat)
            self._service = seat.service = Service(seat.host, range(len(seat.blocks)), self._office)
            stack.callback(self._service.close)
            address = self._service.address
        told: list[Any] = [None] * len(seat.blocks)
        dist.all_gather_object(told, address)
        self._line = seat.line(Address(*told[0]))
        stack.callback(self._line.close)
        self._like = trainable(seat.experiment.models[0], _CPU)

    def answer(self, number: int, request: Request) -> Tree:
        """Push, and receive the server's weights [1, …]."""
        return cast(Push, require(request, Push)).ask(self._line, self._like)

    def adopt(self, rate: float) -> None:
        """The server's optimiser takes this learning rate."""
        if self._office is not None:
            self._office.desk.adopt(rate)

    def finish(self, number: int, losses: tuple[float, ...]) -> Iterator[RowPart]:
        """This rank's peers have finished a round; the parts of rows that are known by now."""
        if self._office is None:
            yield RowPart(number, losses, None, 0.0, self._seat.seconds, None)
            return
        self._losses[number] = losses
        yield from self._known(self._office)

    def leave(self) -> Iterator[RowPart]:
        """Say goodbye; rank 0 goes on serving until all have."""
        self._line.goodbye()
        if self._office is not None:
            while not self._seat.ended(self._service, LOOK):
                yield from self._known(self._office)
            yield from self._known(self._office)

    def result(self) -> tuple[list[dict[str, Tensor]], list[list[int]]]:
        """The server's model, and of every peer's pushes the staleness."""
        if self._office is None:
            return [], []
        model = builder(self._seat.experiment, self._office.desk.params)(0)
        return [dict(model.state_dict())], self._office.staleness

    def _known(self, office: Office) -> Iterator[RowPart]:
        while True:
            try:
                round, weights, sent, seconds = office.finished.get_nowait()
            except Empty:
                return
            if round in self._losses:  # else this rank has stopped before
                tested = None if weights is None else (self._seat.accuracy(0, weights),)
                yield RowPart(round, self._losses.pop(round), tested, sent, seconds, None)
