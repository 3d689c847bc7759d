"""Simulator: the stacked engine; thousands of peers on one machine, and a virtual clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn

from labkit.costs.link import Link
from labkit.engines.control import Control
from labkit.engines.drive import drive
from labkit.engines.experiment import Experiment, require_finite
from labkit.engines.peer import OnePeer
from labkit.engines.stacked import StackedPeers
from labkit.errors import SettingError
from labkit.exchange import Message
from labkit.history import Row
from labkit.tree import Tree


@dataclass(frozen=True)
class Simulator:
    """Thousands of peers on this machine; with `network` or `speeds` a virtual clock tells the seconds.

    `network` is the link between every two peers, `speeds[k]` peer k's speed (1 is this machine), `step_seconds` the
    time of one local step at speed 1 (measured on this machine when it is not given).
    """

    network: Link | None = None
    speeds: Sequence[float] | None = None
    step_seconds: float | None = None
    device: str = "cpu"
    name = "stacked"
    ledger = "formula"

    @property
    def clock(self) -> str:
        """ "virtual" where seconds are computed, "wall" where they are measured."""
        return "wall" if self.network is None and self.speeds is None else "virtual"

    def run(self, experiment: Experiment, report: Callable[[Row], None], control: Control) -> list[nn.Module]:
        """Train all peers; see `labkit.engines.experiment.Engine`."""
        device = torch.device(self.device)
        everyone = range(experiment.peers)
        test_x, test_y = experiment.dataset.test_x.to(device), experiment.dataset.test_y.to(device)
        peers = StackedPeers(experiment, everyone, device)
        stream = experiment.stacked_batches(everyone, device)
        clock = _Clock(self, experiment)
        with torch.random.fork_rng():
            torch.manual_seed(experiment.seed)
            for number in range(1, experiment.rounds + 1):
                if not control.proceed():
                    break
                begun = perf_counter()
                drive(
                    experiment.algorithm.round(peers, stream),
                    lambda message: clock.exchange(peers.steps, message),
                )
                clock.round_ended(peers.steps, perf_counter() - begun)
                losses = peers.mean_losses()
                require_finite(losses, number)
                accuracies = peers.accuracies(test_x, test_y) if experiment.evaluates(number) else None
                report(Row(number, losses, accuracies, clock.sent, clock.seconds))
        return peers.models()


class _Clock:
    """Each peer's virtual time, and the bytes one peer has sent."""

    def __init__(self, simulator: Simulator, experiment: Experiment) -> None:
        speeds = [1.0] * experiment.peers if simulator.speeds is None else [float(s) for s in simulator.speeds]
        if len(speeds) != experiment.peers or any(not s > 0 or math.isinf(s) for s in speeds):
            raise SettingError(
                f"speeds={simulator.speeds!r} does not give each of {experiment.peers} peers a positive speed: "
                "give one number above 0 for each peer."
            )
        self.sent = 0.0
        self._virtual = simulator.clock == "virtual"
        self._link = simulator.network
        self._peers = experiment.peers
        self._slowness = torch.tensor([1.0 / s for s in speeds], dtype=torch.float64)
        self._times = torch.zeros(experiment.peers, dtype=torch.float64)
        self._step = simulator.step_seconds
        if self._virtual and self._step is None:
            self._step = _seconds_per_step(experiment, torch.device(simulator.device))
        self._counted = 0
        self._wall = 0.0

    @property
    def seconds(self) -> float:
        return float(self._times.max()) if self._virtual else self._wall

    def exchange(self, steps: int, message: Message) -> Tree:
        """Everyone waits for the slowest, then the message takes its time."""
        one = message.row()
        self.sent += one.bytes(self._peers)
        self._compute(steps)
        travel = 0.0 if self._link is None else one.seconds(self._peers, self._link)
        self._times[:] = self._times.max() + travel
        return message.stacked()

    def round_ended(self, steps: int, wall: float) -> None:
        """Count the steps after the last message of the round."""
        self._compute(steps)
        self._counted = 0
        self._wall += wall

    def _compute(self, steps: int) -> None:
        if self._virtual:
            self._times += (steps - self._counted) * (self._step or 0.0) * self._slowness
        self._counted = steps


def _seconds_per_step(experiment: Experiment, device: torch.device) -> float:
    """Seconds of one peer's local step on this machine: the median of nine, after one to warm up."""
    peer, stream, taken = OnePeer(experiment, 0, device), experiment.batches(0, device), []
    for batch, _ in zip(stream, range(10), strict=False):
        begun = perf_counter()
        peer.step(peer.loss(batch))
        taken.append(perf_counter() - begun)
    return sorted(taken[1:])[4]
