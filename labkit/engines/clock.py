"""Clock: virtual time; each peer computes at its own speed, and messages travel over a link."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from labkit.checks import number
from labkit.costs.link import Link
from labkit.engines.batches import Examples, Stream
from labkit.engines.experiment import Experiment
from labkit.engines.local_peers import LocalPeers
from labkit.engines.peer import OnePeer, Place
from labkit.engines.shared_state import SharedState
from labkit.errors import SettingError
from labkit.exchange import Message
from labkit.history.lanes import MOST_LANES, Bursts
from labkit.history.rows import Interval, Reporter
from labkit.tasks.sync import BSP, Timeline
from labkit.tree import Tree

_MOST_INTERVALS = 2_000_000  # of all peers together; a longer run keeps no timeline


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
        self._intervals = Intervals(peers)

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
            self._intervals.add(start.numpy(), self._times.numpy().copy())

    def exchange(self, present: Tensor, message: Message) -> None:
        """Those present send `message` (one peer's, not stacked) and receive their replies."""
        self._times[present] = message.arrivals(self._times[present], self.link)

    def gather(self, present: Tensor) -> None:
        """Those who are about to take part begin when the last round has ended: a server has sent them its model."""
        self._times[present] = self._times.max()

    def timeline(self) -> Timeline | None:
        """The intervals that all peers worked, from message to message; None where some were not always there."""
        return self._intervals.timeline("predicted")


class Intervals:
    """When each of n peers began and ended its work between one message and the next."""

    def __init__(self, peers: int) -> None:
        self._peers = peers
        self._starts: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []

    def add(self, start: np.ndarray, end: np.ndarray) -> None:
        """One interval of every peer, [n] seconds each."""
        if self._peers * len(self._starts) < _MOST_INTERVALS:
            self._starts.append(start)
            self._ends.append(end)

    def timeline(self, kind: str) -> Timeline | None:
        """All of them as a Timeline [n, intervals]."""
        if not self._starts or self._peers * len(self._starts) >= _MOST_INTERVALS:
            return None
        start, finish = np.stack(self._starts, axis=1), np.stack(self._ends, axis=1)
        return Timeline(start, finish, BSP(), kind, "peer")


def seconds_per_step(experiment: Experiment, device: torch.device) -> float:
    """Seconds of one peer's local step on this machine: the median of nine, after one to warm up."""
    shared_state = SharedState.of(experiment.models[0] if experiment.alike else None, device)
    peer = OnePeer(experiment, 0, Place(device, shared_state))
    stream, taken = Stream(Examples(experiment.dataset, device), experiment.indices(0)), []
    for batch, _ in zip(stream, range(10), strict=False):
        begun = perf_counter()
        peer.step(peer.loss(batch))
        taken.append(perf_counter() - begun)
    return sorted(taken[1:])[4]


# -- Meter: what a run in one process counts, bytes by their formula and seconds on a virtual clock.


@dataclass(frozen=True)
class Timed:
    """An engine whose seconds are this machine's, or those of a virtual clock where `network` or `speeds` is given."""

    network: Link | None = None
    speeds: Sequence[float] | None = None
    step_seconds: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.step_seconds is not None:
            number(self.step_seconds, "step_seconds", unit="seconds")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
            said = str(error).splitlines()[0].rstrip(".")
            raise SettingError(
                f"device={self.device!r} cannot be used here ({said}): leave it away to compute on the CPU."
            ) from error

    @property
    def clock(self) -> str:
        """ "virtual" where seconds are computed, "wall" where they are measured."""
        return "wall" if self.network is None and self.speeds is None else "virtual"

    def virtual(self, experiment: Experiment, device: torch.device) -> Clock | None:
        """The virtual clock of a run, if it has one."""
        if self.clock == "wall":
            return None
        step = seconds_per_step(experiment, device) if self.step_seconds is None else self.step_seconds
        return Clock(experiment.peers, step, self.speeds, self.network)


class Meter:
    """Counts what the peers send, and lets the clock, if there is one, know of steps and messages."""

    def __init__(self, local: LocalPeers, clock: Clock | None, report: Reporter) -> None:
        self._local, self._clock, self._report = local, clock, report
        self._number, self._bursts = 0, Bursts()
        self.sent = 0.0  # bytes of all peers together
        self.wall = 0.0  # seconds of this machine, evaluations left out

    def begin(self) -> None:
        """A round begins."""
        self._present = torch.as_tensor(self._local.present)
        self._counted = torch.zeros(len(self._present), dtype=torch.int64)
        if self._clock is not None and self._local.comes_and_goes:
            self._clock.gather(self._present)

    def meet(self, message: Message) -> None:
        """Everyone computes up to the message, of which this is one peer's, then it takes its time."""
        self.sent += message.bytes(len(self._present)) * len(self._present)
        if self._clock is not None:
            self._lap(self._clock, message)

    def answer(self, message: Message) -> Tree:
        """The replies to a stacked message."""
        self.meet(message.row())
        return message.stacked()

    def end(self) -> None:
        """Count the work after the last message of the round."""
        if self._clock is not None and (self._local.work > self._counted).any():
            self._lap(self._clock, None)

    def _lap(self, clock: Clock, message: Message | None) -> None:
        """Those present take the steps that were not counted yet, and exchange a message, if there is one."""
        self._number += 1
        tells, few = self._bursts.tells(perf_counter()), self._present[:MOST_LANES]
        work, begun = self._local.work, clock.at(few)
        clock.compute(self._present, work - self._counted)
        self._counted = work
        arrived, met = clock.at(few), clock.at(self._present).max() if tells else None
        if message is not None:
            clock.exchange(self._present, message)
        if met is None:
            return
        done = clock.at(few)
        each = torch.stack([few, begun, arrived, torch.minimum(met, done), done], dim=1)  # float64 [m, 5]
        for lane, *moments in each.tolist():
            self._report(Interval(int(lane), self._number, *moments))
