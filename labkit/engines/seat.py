"""Seat: one rank of an asynchronous run, which peers it has, and how long it waits for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter

import torch
import torch.distributed as dist

from labkit.cluster.rank import Rank, signals
from labkit.cluster.sockets import host_of
from labkit.engines.control import Wish
from labkit.engines.desks import Params, loaded
from labkit.engines.experiment import Experiment
from labkit.engines.peer import accuracies, classes
from labkit.engines.service import Address, Line, Service, require_patience

_ROUND_TRIPS = 20  # to learn rank 0's time: on a busy machine few are not held up


@dataclass
class Seat:
    """`blocks[r]` are the peers of rank r, and this rank's compute on `device`.

    `patience` limits in seconds how long it waits for a word of the others; a pause does not count.
    """

    experiment: Experiment
    blocks: Sequence[range]
    rank: int
    device: torch.device
    patience: float
    began: float = 0.0
    service: Service | None = None  # this rank's own, if it has one

    @property
    def members(self) -> range:
        return self.blocks[self.rank]

    @property
    def host(self) -> str:
        """The address of this rank's worker."""
        assert Rank.current is not None
        return host_of(Rank.current.order.workers[self.rank])

    @property
    def seconds(self) -> float:
        """Since the ranks began."""
        return perf_counter() - self.began

    def start(self) -> None:
        """The ranks begin, and count their seconds from one moment.

        Each asks rank 0 for its time and takes it to be that of the middle of the shortest round trip, which is wrong
        by half of that at most (Cristian 1989, doi:10.1007/BF01784024): less than a request and its answer take, so
        that nobody seems to begin before the one has finished for whom it waited.
        """
        self.began, told = perf_counter(), torch.zeros(1, dtype=torch.float64)
        trips: list[tuple[float, float]] = []  # how long each took, and rank 0's beginning by this rank's clock
        for _ in range(_ROUND_TRIPS * (self.rank > 0)):
            sent = perf_counter()
            dist.send(told, 0)
            dist.recv(told, 0)
            back = perf_counter()
            trips.append((back - sent, (sent + back) / 2 - float(told)))
        for rank in range(1, len(self.blocks) if self.rank == 0 else 0):
            for _ in range(_ROUND_TRIPS):
                dist.recv(told, rank)
                dist.send(torch.tensor([self.seconds], dtype=torch.float64), rank)
        if trips:
            self.began = min(trips)[1]
        lapsed = torch.tensor([self.seconds], dtype=torch.float64)
        dist.broadcast(lapsed, 0)
        self.began += float(lapsed)

    def explain(self) -> None:
        """Raise what this rank's own service failed with, if it did: others hang up on each other because of it."""
        if self.service is not None and self.service.failure is not None:
            raise self.service.failure from None  # else the verdict finds an echo in its traceback

    def line(self, address: Address) -> Line:
        """A connection to the service of a rank."""
        return Line(address, self.rank, self.patience, lambda: wish() is Wish.PAUSE)

    def ended(self, service: Service, timeout: float) -> bool:
        """Wait so long for the service to end; True when it has.

        Raises what it failed with, and ExchangeError when nobody has asked for too long.
        """
        if wish() is Wish.PAUSE:
            service.heard = monotonic()
        over = service.wait(timeout)
        require_patience(monotonic() - service.heard, self.patience)
        return over

    def accuracy(self, peer: int, params: Params) -> float:
        """The share of the test set that the peer's model gets right with these parameters."""
        model = loaded(self.experiment.fresh_model(peer), params).to(self.device).eval()
        data = self.experiment.dataset
        predicted = classes(model, data.test_x.to(self.device)).unsqueeze(0)
        return accuracies(predicted, data.test_y.to(self.device))[0]


def wish() -> Wish:
    """What the user wishes of this rank."""
    return Wish(signals().get("wish", Wish.GO))
