"""Decentral: a run without a server; every rank has a thread that averages with whoever asks."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from labkit import tree
from labkit.engines.desks import PairDesk, Params, builder, require
from labkit.engines.ranks import HEED, Part
from labkit.engines.seat import Seat
from labkit.engines.service import Address, Line, Service
from labkit.exchange import Pair, Request
from labkit.exchange.parcel import unwrapped, wrapped
from labkit.tree import Tree

_CPU = torch.device("cpu")


class FarDesk(PairDesk):
    """The parameters of this rank's peers, with which those of other ranks average too, by their clerk's hand."""

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat.experiment, _CPU, seat.members)
        self.lines: dict[int, Line] = {}  # to the other ranks
        self._firsts = [block.start for block in seat.blocks]
        self._changing = threading.Lock()

    def reply(self, peer: int) -> Params:
        with self._changing:
            return tree.map(torch.clone, super().reply(peer))

    def copy(self, peer: int) -> Params:
        """What the peer has now."""
        with self._changing:
            return tree.map(torch.clone, self.params(peer))

    def _meet(self, peer: int, partner: int) -> None:
        if partner in self._members:
            with self._changing:
                super()._meet(peer, partner)
            return
        change = Pair.ask(self.lines[bisect_right(self._firsts, partner) - 1], partner, self.copy(peer))
        with self._changing:
            for name, leaf in self.params(peer).items():
                leaf.add_(cast(Params, change)[name])

    def _step(self, peer: int, update: Params) -> int:
        with self._changing:
            return super()._step(peer, update)

    # -- the clerk

    def heard(self, rank: int, head: int, body: bytes) -> list[tuple[int, bytes]]:
        with self._changing:
            mine = self.params(head)
            average = cast(Params, Pair.average(mine, tree.map(lambda leaf: leaf[0], unwrapped(body, mine))))
            for name, leaf in mine.items():
                leaf.copy_(average[name])
            self._changes[head] += 1
        return [(rank, wrapped(average))]

    def left(self, rank: int) -> list[tuple[int, bytes]]:
        return []


class Decentral:
    """One rank's part in it. Its peers are tested as they finish a round, and after the last one when all have."""

    def __init__(self, seat: Seat, stack: ExitStack) -> None:
        self._seat, self._desk = seat, FarDesk(seat)
        self._staleness: dict[int, list[int]] = {k: [] for k in seat.members}
        self._last: tuple[float, ...] | None = None
        others = [rank for rank in range(len(seat.blocks)) if rank != seat.rank]
        self._service = Service(seat.host, others, self._desk)
        stack.callback(self._service.close)
        told: list[Any] = [None] * len(seat.blocks)
        dist.all_gather_object(told, self._service.address)
        for rank in others:
            line = self._desk.lines[rank] = seat.line(Address(*told[rank]))
            stack.callback(line.close)

    def answer(self, number: int, request: Request) -> Tree:
        """Let each peer [K] average with its neighbour, and receive what it then has [K, …]."""
        replies = []
        for peer, own in zip(self._seat.members, require(request, Pair).split(), strict=True):
            cpu = cast(Pair, own)
            self._staleness[peer].append(self._desk.take(peer, number, Pair(_on_cpu(cpu.x), cpu.topology)))
            replies.append(self._desk.reply(peer))
        return tree.map(lambda *rows: torch.stack(rows), *replies)

    def finish(self, number: int, losses: tuple[float, ...]) -> Iterator[Part]:
        """This rank's peers have finished a round: its part of the row."""
        if number == self._seat.experiment.rounds:
            self._last = losses  # others may still average with what they have
        else:
            yield self._part(number, losses)

    def leave(self) -> Iterator[Part]:
        """Say goodbye to all, and answer them until they do."""
        for line in self._desk.lines.values():
            line.goodbye()
        while not self._seat.ended(self._service, HEED):
            pass
        if self._last is not None:
            yield self._part(self._seat.experiment.rounds, self._last)

    def result(self) -> tuple[list[dict[str, Tensor]], list[list[int]]]:
        """The models of this rank's peers, and of their requests the staleness."""
        build = builder(self._seat.experiment, self._desk.params)
        return [dict(build(k).state_dict()) for k in self._seat.members], list(self._staleness.values())

    def _part(self, number: int, losses: tuple[float, ...]) -> Part:
        tested = self._seat.experiment.evaluates(number)
        each = tuple(self._seat.accuracy(k, self._desk.copy(k)) for k in self._seat.members) if tested else None
        sent = self._service.sent + sum(line.sent for line in self._desk.lines.values())
        return Part(number, losses, each, sent, self._seat.seconds, None)


def _on_cpu(value: Tree) -> Tree:
    return tree.map(lambda leaf: leaf.cpu(), value)
