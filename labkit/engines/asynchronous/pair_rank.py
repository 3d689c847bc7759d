"""Decentral: a run without a server; every rank has a thread that keeps its peers' parameters and lends them."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from labkit import tree
from labkit.engines.asynchronous.connections import Address, Answers, Line, Seat, Service
from labkit.engines.asynchronous.request_handlers import Params, beginnings, builder, require
from labkit.engines.distributed.reporting import LOOK, RowPart
from labkit.exchange import Pair, Request
from labkit.exchange.requests import unwrapped, wrapped
from labkit.tree import Tree

_CPU = torch.device("cpu")


class Lender:
    """The parameters of a rank's peers, each lent to one who asks for it until given back changed; others wait.

    Only the service's thread touches them, so that they need no lock; this rank's own peers borrow them too.
    """

    def __init__(self, seat: Seat) -> None:
        each = beginnings(seat.experiment, _CPU)
        self._like = each[0]
        self._kept = {k: wrapped(each[0 if len(each) == 1 else k]) for k in seat.members}
        self._changes = dict.fromkeys(seat.members, 0)
        self._waiting: dict[int, deque[int]] = defaultdict(deque)  # the ranks that wait for a peer's, borrower first

    def heard(self, rank: int, head: int, body: bytes) -> Answers:
        """A rank asks for a peer's parameters with an empty body, and gives them back with what they now are."""
        waiting = self._waiting[head]
        if body:
            self._kept[head] = body
            self._changes[head] += 1
            waiting.popleft()
            return self._lent(head) if waiting else []
        waiting.append(rank)
        return self._lent(head) if len(waiting) == 1 else []

    def left(self, rank: int) -> Answers:
        return []

    def params(self, peer: int) -> Params:
        """What a peer has; safe when the service has ended."""
        return cast(Params, tree.map(lambda leaf: leaf[0], unwrapped(self._kept[peer], self._like)))

    def _lent(self, peer: int) -> Answers:
        return [(self._waiting[peer][0], self._changes[peer], self._kept[peer])]


class Decentral:
    """One rank's part in it. Its peers are tested as they finish a round, and after the last one when all have."""

    def __init__(self, seat: Seat, stack: ExitStack) -> None:
        self._seat, self._lender = seat, Lender(seat)
        self._mine: dict[int, Params] = {}  # what each peer had when its last round ended
        self._seen = dict.fromkeys(seat.members, 0)
        self._staleness: dict[int, list[int]] = {k: [] for k in seat.members}
        self._last: tuple[float, ...] | None = None
        self._firsts = [block.start for block in seat.blocks]
        self._service = seat.service = Service(seat.host, range(len(seat.blocks)), self._lender)
        stack.callback(self._service.close)
        told: list[Any] = [None] * len(seat.blocks)
        dist.all_gather_object(told, self._service.address)
        self._lines: list[Line] = []  # to each rank, this one too
        for address in told:
            self._lines.append(seat.line(Address(*address)))
            stack.callback(self._lines[-1].close)

    def answer(self, number: int, request: Request) -> Tree:
        """Let each peer [K] average with its neighbour, and receive what it then has [K, …]."""
        experiment, replies = self._seat.experiment, []
        for peer, own in zip(self._seat.members, require(request, Pair).split(), strict=True):
            pair = Pair(tree.map(lambda leaf: leaf.cpu(), own.value), cast(Pair, own).topology)
            partner = pair.partner(peer, number, experiment.seed, experiment.peers)
            mine, changes = pair.meet(peer, partner, self._line)
            self._staleness[peer].append(changes - self._seen[peer])
            self._seen[peer] = changes + 1  # by this peer itself
            self._mine[peer] = cast(Params, mine)
            replies.append(mine)
        return tree.map(lambda *rows: torch.stack(rows), *replies)

    def adopt(self, rate: float) -> None:
        """Nothing is kept here that has a learning rate."""

    def finish(self, number: int, losses: tuple[float, ...]) -> Iterator[RowPart]:
        """This rank's peers have finished a round: its part of the row."""
        if number == self._seat.experiment.rounds:
            self._last = losses  # others may still average with what they have
        else:
            yield self._part(number, losses)

    def leave(self) -> Iterator[RowPart]:
        """Say goodbye to all, and lend what there is until they do."""
        for line in self._lines:
            line.goodbye()
        while not self._seat.ended(self._service, LOOK):
            pass
        self._mine = {k: self._lender.params(k) for k in self._seat.members}
        if self._last is not None:
            yield self._part(self._seat.experiment.rounds, self._last)

    def result(self) -> tuple[list[dict[str, Tensor]], list[list[int]]]:
        """The models of this rank's peers, and of their requests the staleness."""
        build = builder(self._seat.experiment, self._lender.params)
        return [dict(build(k).state_dict()) for k in self._seat.members], list(self._staleness.values())

    def _line(self, peer: int) -> Line:
        return self._lines[bisect_right(self._firsts, peer) - 1]

    def _part(self, number: int, losses: tuple[float, ...]) -> RowPart:
        tested = self._seat.experiment.evaluates(number)
        each = tuple(self._seat.accuracy(k, self._mine[k]) for k in self._seat.members) if tested else None
        return RowPart(number, losses, each, self._sent, self._seat.seconds, None)

    @property
    def _sent(self) -> float:
        """Bytes to other ranks: what was given back to them, and what was lent."""
        others = [rank for rank in range(len(self._lines)) if rank != self._seat.rank]
        return sum(self._lines[rank].sent + self._service.sent[rank] for rank in others)
