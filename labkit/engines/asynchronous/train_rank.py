"""Apart: what each worker of the cluster engine does when peers meet at no barrier, but ask for what they need.

A worker's peers are one machine: they take their steps together, and the K of them ask at once. Who comes first is up
to the machines and not to the seed, so that two runs differ, unless all wait for all (BSP).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from time import sleep
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from labkit.data.loading import loaders_closed
from labkit.engines.asynchronous.async_peers import require_request
from labkit.engines.asynchronous.connections import Seat
from labkit.engines.asynchronous.pair_rank import Decentral
from labkit.engines.asynchronous.server_rank import Central
from labkit.engines.barriers import exhaust
from labkit.engines.clock import Clock
from labkit.engines.control import Wish
from labkit.engines.distributed.reporting import (
    LOOK,
    MOST_INTERVALS,
    Reports,
    Result,
    RowPart,
    Stopwatch,
    wish,
    wished_rates,
)
from labkit.engines.experiment import Experiment
from labkit.engines.local_peers import LocalPeers
from labkit.engines.peer import OnePeer
from labkit.exchange import Message, Request
from labkit.history.rows import Event
from labkit.tree import Tree


class Side(Protocol):
    """How a rank's requests are answered, and what it knows of the run's rows."""

    def answer(self, number: int, request: Request) -> Tree:
        """The reply to the stacked requests of this rank's peers, at the end of round `number`."""

    def adopt(self, rate: float) -> None:
        """Take this learning rate, if one is kept here."""

    def finish(self, number: int, losses: tuple[float, ...]) -> Iterator[RowPart]:
        """The round is over; parts of rows that are known by now."""

    def leave(self) -> Iterator[RowPart]:
        """Ask nothing more, and wait until nobody asks this rank; the last parts of rows."""

    def result(self) -> tuple[list[dict[str, Tensor]], list[list[int]]]:
        """The states of the models that this rank answers for, and staleness by peer."""


@loaders_closed()
def train_apart(
    experiment: Experiment, blocks: list[range], patience: float, every: float | None, on: str | None = None
) -> Result:
    """Train this rank's block of peers, heeding what the user wishes by itself."""
    device = torch.device(on or ("cuda" if "nccl" in dist.get_backend_config() else "cpu"))
    seat = Seat(experiment, blocks, dist.get_rank(), device, patience)
    alone = max(map(len, blocks)) == 1 or not experiment.stackable
    local = LocalPeers(experiment, seat.members, device, single=OnePeer if alone else None)
    with ExitStack() as stack:
        side: Side = (Central if experiment.traits.central else Decentral)(seat, stack)
        seat.start()
        watch = Stopwatch(lambda: 0, Clock(seat.began), dist.get_rank())
        reports = Reports(watch, every)
        try:
            for news in _rounds(seat, local, side, watch):
                reports.add(news)
        except ConnectionError:
            seat.explain()
            raise
        reports.flush()
        states, staleness = side.result()
        return Result(states, watch.intervals[:MOST_INTERVALS], staleness)


def _rounds(seat: Seat, local: LocalPeers, side: Side, watch: Stopwatch) -> Iterator[RowPart | Event]:
    """All rounds of this rank's peers, until the last of the others has finished too."""
    with torch.random.fork_rng():
        torch.manual_seed(seat.experiment.seed + seat.members.start)
        for number in range(1, seat.experiment.rounds + 1):
            if not _proceed():
                break
            rates = wished_rates()
            for event in local.adopt(rates, number, seat.seconds):
                side.adopt(rates[-1])
                yield event
            begun, asked = _round(seat, local, side, number)
            watch.intervals.append((begun, asked))
            watch.interval(begun, asked, seat.seconds)
            yield from side.finish(number, local.mean_losses())
    yield from side.leave()


def _round(seat: Seat, local: LocalPeers, side: Side, number: int) -> tuple[float, float]:
    """One round of this rank's peers; when they began to compute, and had what they asked with."""
    begun, asked = seat.seconds, []

    def answer(message: Message) -> Tree:
        asked.append(seat.seconds)
        return side.answer(number, require_request(message if len(asked) == 1 else None, seat.experiment.algorithm))

    local.begin(number)
    exhaust(local.round(local.joined(answer)))
    if not asked:
        require_request(None, seat.experiment.algorithm)
    local.end()
    return begun, asked[0]


def _proceed() -> bool:
    """Wait while paused; False once the run is to stop."""
    while (wished := wish()) is Wish.PAUSE:
        sleep(LOOK)
    return wished is Wish.GO
