"""Seat: one rank of an asynchronous run, which peers it has, and how long it waits for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter

import torch

from labkit.cluster.rank import Rank
from labkit.cluster.sockets import host_of
from labkit.engines.control import Wish
from labkit.engines.desks import Params, loaded
from labkit.engines.evaluation import accuracies, classes
from labkit.engines.experiment import Experiment
from labkit.engines.moment import common_moment
from labkit.engines.service import Address, Line, Service, require_patience
from labkit.engines.steering import wish


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
        """The ranks begin, and count their seconds from one moment."""
        self.began = common_moment()

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
