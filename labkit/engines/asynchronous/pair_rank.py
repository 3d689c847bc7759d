"""Pairs: asynchronous ranks without a server; each keeps its peers' parameters, and its service lends them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from labkit import tree
from labkit.cluster.gang.rank import own_host
from labkit.engines.asynchronous.connections import RankConnection, Service
from labkit.engines.asynchronous.request_handlers import Params, beginnings, builder, require
from labkit.engines.asynchronous.train_rank import AsyncRank
from labkit.exchange import Pair, Request
from labkit.exchange.requests import unwrapped, wrapped
from labkit.history.rows import Row
from labkit.tree import Tree

_CPU = torch.device("cpu")


class LendingService(Service):
    """The parameters of a rank's peers, each lent to one who asks for it until given back changed; others wait.

    This rank's own peers borrow them too.
    """

    def __init__(self, rank: AsyncRank) -> None:
        each = beginnings(rank.experiment, _CPU)
        self._like = each[0]
        self._kept = {k: wrapped(each[0 if len(each) == 1 else k]) for k in rank.members}
        self._changes = dict.fromkeys(rank.members, 0)
        self._lent: set[int] = set()
        super().__init__(own_host(), range(len(rank.blocks)), rank.patience)

    def answer(self, rank: int, head: int, body: bytes) -> tuple[int, bytes] | None:
        """A rank asks for a peer's parameters with an empty body, and gives them back with what they now are."""
        with self.changed:
            if not body:
                self.until(lambda: head not in self._lent)
                self._lent.add(head)
                return self._changes[head], self._kept[head]
            self._kept[head] = body
            self._changes[head] += 1
            self._lent.discard(head)
            self.changed.notify_all()
            return None

    def left(self, rank: int) -> None:
        """Nobody waits for a rank that has left: it has given back what it had."""

    def params(self, peer: int) -> Params:
        """What a peer has; safe when the service has ended."""
        return cast(Params, tree.map(lambda leaf: leaf[0], unwrapped(self._kept[peer], self._like)))


class PairRank(AsyncRank):
    """One rank's part in it. Its peers are tested as they finish a round, and after the last one when all have."""

    service: LendingService

    def connect(self, stack: ExitStack) -> None:
        self._mine: dict[int, Params] = {}  # what each peer had when its last round ended
        self._seen = dict.fromkeys(self.members, 0)
        self._staleness: dict[int, list[int]] = {k: [] for k in self.members}
        self._last: Row | None = None
        self._firsts = [block.start for block in self.blocks]
        self.service = LendingService(self)
        stack.callback(self.service.close)
        self._ranks = self.connections(stack, to=range(len(self.blocks)))  # to this one too

    def answer(self, number: int, request: Request) -> Tree:
        """Let each peer [K] average with its neighbour, and receive what it then has [K, …]."""
        replies = []
        for peer, own in zip(self.members, cast(Pair, require(request, Pair)).split(), strict=True):
            pair = Pair(tree.map(lambda leaf: leaf.cpu(), own.x), own.topology)
            partner = pair.partner(peer, number, self.experiment.seed, self.experiment.peers)
            mine, changes = pair.meet(peer, partner, self._keeper)
            self._staleness[peer].append(changes - self._seen[peer])
            self._seen[peer] = changes + 1  # by this peer itself
            self._mine[peer] = cast(Params, mine)
            replies.append(mine)
        return tree.map(lambda *rows: torch.stack(rows), *replies)

    def adopt(self, rate: float) -> None:
        """The peers have optimisers of their own, and nobody else has."""

    def finish(self, part: Row) -> Iterator[Row]:
        if part.round == self.experiment.rounds:
            self._last = part  # others may still average with what they have
        else:
            yield self._tested(part)

    def leave(self) -> Iterator[Row]:
        """Lend what there is until all ranks have left."""
        for rank in self._ranks:
            rank.leave()
        while not self.served():
            pass
        self._mine = {k: self.service.params(k) for k in self.members}
        if self._last is not None:
            yield self._tested(self._last)

    def result(self) -> tuple[list[dict[str, Tensor]], list[list[int]]]:
        """The models of this rank's peers, and of their requests the staleness."""
        build = builder(self.experiment, self.service.params)
        return [dict(build(k).state_dict()) for k in self.members], list(self._staleness.values())

    def _keeper(self, peer: int) -> RankConnection:
        return self._ranks[bisect_right(self._firsts, peer) - 1]

    def _tested(self, part: Row) -> Row:
        seconds, tested = self.clock.seconds, self.experiment.evaluates(part.round)
        part = replace(part, bytes=self._sent, seconds=seconds)
        return self.scores(self.members, self._mine, self.members).put_into(part) if tested else part

    @property
    def _sent(self) -> float:
        """Bytes to other ranks: what was given back to them, and what was lent."""
        others = [rank for rank in range(len(self._ranks)) if rank != self.rank]
        return sum(self._ranks[rank].sent + self.service.sent[rank] for rank in others)
