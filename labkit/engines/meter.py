"""Meter: what a run in one process counts, bytes by their formula and seconds on a virtual clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from time import perf_counter

import torch

from labkit.costs.link import Link
from labkit.engines.clock import Clock, seconds_per_step
from labkit.engines.cohort import Cohort
from labkit.engines.experiment import Experiment
from labkit.errors import SettingError
from labkit.exchange import Message
from labkit.lanes import MOST_LANES, Bursts
from labkit.news import Report, Stretch
from labkit.tree import Tree


@dataclass(frozen=True)
class Timed:
    """An engine whose seconds are this machine's, or those of a virtual clock where `network` or `speeds` is given."""

    network: Link | None = None
    speeds: Sequence[float] | None = None
    step_seconds: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        step = self.step_seconds
        if step is not None and not (isinstance(step, Real) and math.isfinite(step) and step >= 0):
            raise SettingError(f"step_seconds={step!r} is no time that a step takes: give seconds from 0 on.")
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

    def __init__(self, cohort: Cohort, clock: Clock | None, report: Report) -> None:
        self._cohort, self._clock, self._report = cohort, clock, report
        self._number, self._bursts = 0, Bursts()
        self.sent = 0.0  # bytes of all peers together
        self.wall = 0.0  # seconds of this machine, evaluations left out

    def begin(self) -> None:
        """A round begins."""
        self._present = torch.as_tensor(self._cohort.present)
        self._counted = torch.zeros(len(self._present), dtype=torch.int64)
        if self._clock is not None and self._cohort.comes_and_goes:
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
        if self._clock is not None and (self._cohort.work > self._counted).any():
            self._lap(self._clock, None)

    def _lap(self, clock: Clock, message: Message | None) -> None:
        """Those present take the steps that were not counted yet, and exchange a message, if there is one."""
        self._number += 1
        tells, few = self._bursts.tells(perf_counter()), self._present[:MOST_LANES]
        work, begun = self._cohort.work, clock.at(few)
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
            self._report(Stretch(int(lane), self._number, *moments))
