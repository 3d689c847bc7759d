"""Clock: virtual time; each peer computes at its own speed, and messages travel over a link."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from labkit.costs.link import Link
from labkit.engines.experiment import Experiment
from labkit.engines.memory import Commons
from labkit.engines.peer import OnePeer, Place
from labkit.engines.streams import Examples, Stream
from labkit.errors import SettingError
from labkit.exchange import Message
from labkit.tasks.sync import BSP, Timeline

_MOST_STRETCHES = 2_000_000  # of all peers together; a longer run keeps no timeline


class Clock:
    """Every peer's virtual time in seconds, [n]; who computes takes its time, who sends waits for the reply.

    `step` is the seconds of one local step at speed 1, `link` the network between every two peers.
    """

    def __init__(self, peers: int, step: float, speeds: Sequence[float] | None = None, link: Link | None = None):
        given = [1.0] * peers if speeds is None else [float(s) for s in speeds]
        if len(given) != peers or any(not s > 0 or math.isinf(s) for s in given):
            raise SettingError(
                f"speeds={speeds!r} does not give each of {peers} peers a positive speed: "
                "give one number above 0 for each peer."
            )
        self.seconds_per_step = step / torch.tensor(given, dtype=torch.float64)  # [n]
        self.link = link or Link()
        self._times = torch.zeros(peers, dtype=torch.float64)
        self._stretches = Stretches(peers)

    def at(self, peers: Tensor) -> Tensor:
        """The times of these peers, [m]."""
        return self._times[peers]

    @property
    def seconds(self) -> float:
        """The time of the peer that is furthest."""
        return float(self._times.max())

    def compute(self, present: Tensor, steps: Tensor) -> None:
        """Those present [m] take so many local steps [m] each."""
        start = self._times[present]
        self._times[present] = start + steps * self.seconds_per_step[present]
        if len(present) == len(self._times) and steps.any():
            self._stretches.add(start.numpy(), self._times.numpy().copy())

    def exchange(self, present: Tensor, message: Message) -> None:
        """Those present send `message` (one peer's, not stacked) and receive their replies."""
        self._times[present] = message.arrivals(self._times[present], self.link)

    def gather(self, present: Tensor) -> None:
        """Those who are about to take part begin when the last round has ended: a server has sent them its model."""
        self._times[present] = self._times.max()

    def timeline(self) -> Timeline | None:
        """The stretches that all peers worked, from message to message; None where some were not always there."""
        return self._stretches.timeline("predicted")


class Stretches:
    """When each of n peers began and ended its work between one message and the next."""

    def __init__(self, peers: int) -> None:
        self._peers = peers
        self._starts: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []

    def add(self, start: np.ndarray, end: np.ndarray) -> None:
        """One stretch of every peer, [n] seconds each."""
        if self._peers * len(self._starts) < _MOST_STRETCHES:
            self._starts.append(start)
            self._ends.append(end)

    def timeline(self, kind: str) -> Timeline | None:
        """All of them as a Timeline [n, stretches]."""
        if not self._starts or self._peers * len(self._starts) >= _MOST_STRETCHES:
            return None
        start, finish = np.stack(self._starts, axis=1), np.stack(self._ends, axis=1)
        return Timeline(start, finish, BSP(), kind, "peer")


def seconds_per_step(experiment: Experiment, device: torch.device) -> float:
    """Seconds of one peer's local step on this machine: the median of nine, after one to warm up."""
    commons = Commons.of(experiment.models[0] if experiment.alike else None, device)
    peer = OnePeer(experiment, 0, Place(device, commons))
    stream, taken = Stream(Examples(experiment.dataset, device), experiment.indices(0)), []
    for batch, _ in zip(stream, range(10), strict=False):
        begun = perf_counter()
        peer.step(peer.loss(batch))
        taken.append(perf_counter() - begun)
    return sorted(taken[1:])[4]
