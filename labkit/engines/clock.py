"""Clock: a run's seconds, this machine's or virtual ones; each peer computes at its own speed and messages travel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from labkit.checks import number, speeds_of
from labkit.costs.link import Link
from labkit.engines.batches import Examples, Stream
from labkit.engines.experiment import Experiment
from labkit.engines.local_peers import LocalPeers
from labkit.engines.peer import OnePeer, Place
from labkit.errors import SettingError
from labkit.exchange import Message, Served
from labkit.history.lanes import MOST_LANES, Bursts
from labkit.history.rows import Interval
from labkit.tasks.sync import BSP, Timeline

_MOST_INTERVALS = 2_000_000  # of all peers together; a longer run keeps no timeline


class Clock:
    """The seconds of training since `zero`, on this machine's clock; time in which it is stopped does not count.

    Where several processes train together they stop together, and `latest` tells each of them when the last of them did
    so, by its clock: from there all go on.
    """

    def __init__(self, zero: float | None = None, latest: Callable[[float], float] = float) -> None:
        self._zero, self._latest = perf_counter() if zero is None else zero, latest
        self._stands: float | None = None  # the seconds while it is stopped

    @property
    def seconds(self) -> float:
        """For how long the run has trained."""
        stands = self._stands  # another thread may stop it, or let it go on
        return perf_counter() - self._zero if stands is None else stands

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done within is no training: evaluation, a pause, a reader's look at a message."""
        begun = self._stands = self.seconds
        yield
        latest = self._latest(begun)  # which takes until the last process has done what is within
        self._zero, self._stands = perf_counter() - latest, None

    def begin(self, local: LocalPeers) -> None:
        """Those of the peers who are present begin a round."""

    def meet(self, cost: Message | Served) -> list[Interval]:
        """They compute up to the message, which has this cost, and then it takes its time; what that was."""
        return []

    def end(self) -> list[Interval]:
        """They have computed what comes after the last message of the round."""
        return []

    def timeline(self) -> Timeline | None:
        """When all peers worked, from message to message, if that is known."""
        return None


class VirtualClock(Clock):
    """Every peer's virtual time in seconds, [n]; who computes takes its time, who sends waits for the reply.

    `step` is the seconds of one local step at speed 1, `link` the network between every two peers.
    """

    def __init__(self, peers: int, step: float, speeds: Sequence[float] | None = None, link: Link | None = None):
        super().__init__()
        self.seconds_per_step = step / torch.from_numpy(speeds_of(speeds, peers, "peer", SettingError))  # [n]
        self.link = link or Link()
        self._times = torch.zeros(peers, dtype=torch.float64)
        self._starts: list[np.ndarray] = []  # [n] each: when the peers began to compute before each message
        self._ends: list[np.ndarray] = []
        self._number, self._bursts = 0, Bursts()

    @property
    def seconds(self) -> float:
        """The time of the peer that is furthest."""
        return float(self._times.max())

    @contextmanager
    def stopped(self) -> Iterator[None]:
        yield

    def begin(self, local: LocalPeers) -> None:
        self._local, self._present = local, torch.as_tensor(local.present)
        self._counted = torch.zeros(len(self._present), dtype=torch.int64)
        if len(self._present) < len(self._times):  # when the last round has ended, a server has sent them its model
            self._times[self._present] = self._times.max()

    def meet(self, cost: Message | Served) -> list[Interval]:
        return self._advance(cost)

    def end(self) -> list[Interval]:
        return self._advance(None) if (self._local.work > self._counted).any() else []

    def timeline(self) -> Timeline | None:
        """None where some were not always there, too."""
        if not self._starts or not self._keeps:
            return None
        return Timeline(np.stack(self._starts, axis=1), np.stack(self._ends, axis=1), BSP(), "predicted", "peer")

    @property
    def _keeps(self) -> bool:
        return len(self._times) * len(self._starts) < _MOST_INTERVALS

    def _advance(self, message: Message | Served | None) -> list[Interval]:
        """Those present take the steps that were not counted yet, and exchange a message, if there is one."""
        present, times, work = self._present, self._times, self._local.work
        steps, self._counted = work - self._counted, work
        begun = times[present]
        arrived = begun + steps * self.seconds_per_step[present]
        if len(present) == len(times) and steps.any() and self._keeps:
            self._starts.append(begun.numpy())
            self._ends.append(arrived.numpy())
        done = arrived if message is None else message.arrivals(arrived, self.link)
        times[present] = done
        self._number += 1
        if not self._bursts.tells(perf_counter()):
            return []
        met = torch.minimum(arrived.max(), done)
        each = [own[:MOST_LANES].tolist() for own in (present, begun, arrived, met, done)]
        return [Interval(lane, self._number, *moments) for lane, *moments in zip(*each, strict=True)]


def seconds_per_step(experiment: Experiment, device: torch.device) -> float:
    """Seconds of one peer's local step on this machine: the median of nine, after one to warm up."""
    experiment = experiment.unsplit  # a step is one of the whole model
    peer = OnePeer(experiment, 0, Place.of(experiment, device, archived=False))
    stream, taken = Stream(Examples(experiment.dataset, device), experiment.indices(0)), []
    for batch, _ in zip(stream, range(10), strict=False):
        begun = perf_counter()
        peer.step(peer.loss(batch))
        taken.append(perf_counter() - begun)
    return sorted(taken[1:])[4]


@dataclass(frozen=True)
class Timed:
    """An engine whose seconds are this machine's, or those of a virtual clock where `network` or `speeds` is given."""

    network: Link | None = None
    speeds: Sequence[float] | None = None
    step_seconds: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.network is not None and not isinstance(self.network, Link):
            raise SettingError(f"network={self.network!r} is no link: give one such as lk.Link(…).")
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

    def virtual(self, experiment: Experiment, device: torch.device) -> VirtualClock | None:
        """The virtual clock of a run, if it has one."""
        if self.clock == "wall":
            return None
        step = seconds_per_step(experiment, device) if self.step_seconds is None else self.step_seconds
        return VirtualClock(experiment.peers, step, self.speeds, self.network)
