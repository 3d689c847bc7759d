"""Simulator: the stacked engine; thousands of peers on one machine, and a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from labkit.allocator import keep_memory
from labkit.costs.link import Link
from labkit.engines.clock import Clock, seconds_per_step
from labkit.engines.cohort import Cohort
from labkit.engines.control import Control
from labkit.engines.experiment import Experiment, Outcome
from labkit.exchange import Message
from labkit.history import Row
from labkit.tree import Tree


@dataclass(frozen=True)
class Simulator:
    """Thousands of peers on this machine; with `network` or `speeds` a virtual clock tells the seconds.

    `network` is the link between every two peers, `speeds[k]` peer k's speed (1 is this machine), `step_seconds` the
    time of one local step at speed 1 (measured on this machine when it is not given). `block` is how many peers are
    computed at once (measured for each model when it is not given).
    """

    network: Link | None = None
    speeds: Sequence[float] | None = None
    step_seconds: float | None = None
    device: str = "cpu"
    block: int | None = None
    name = "stacked"
    ledger = "formula"

    @property
    def clock(self) -> str:
        """ "virtual" where seconds are computed, "wall" where they are measured."""
        return "wall" if self.network is None and self.speeds is None else "virtual"

    def run(self, experiment: Experiment, report: Callable[[Row], None], control: Control) -> Outcome:
        """Train all peers; see `labkit.engines.experiment.Engine`."""
        device = torch.device(self.device)
        keep_memory()
        test_x, test_y = experiment.dataset.test_x.to(device), experiment.dataset.test_y.to(device)
        clock = self._clock(experiment, device)
        cohort = Cohort(experiment, range(experiment.peers), device, most=self.block)
        meter = _Meter(cohort, clock)
        answer, predict = cohort.joined(meter.answer), cohort.joined(lambda message: message.stacked())
        with torch.random.fork_rng():
            torch.manual_seed(experiment.seed)
            for number in range(1, experiment.rounds + 1):
                if not control.proceed():
                    break
                begun = perf_counter()
                cohort.begin(number)
                meter.begin()
                cohort.round(answer)
                meter.end()
                losses = cohort.mean_losses(number)
                cohort.end()
                meter.wall += perf_counter() - begun
                tested = experiment.evaluates(number)
                accuracies = cohort.accuracies(test_x, test_y, predict) if tested else None
                seconds = meter.wall if clock is None else clock.seconds
                report(Row(number, losses, accuracies, meter.sent / experiment.peers, seconds, cohort.who))
        return Outcome(experiment.models_of(cohort.model), None if clock is None else clock.timeline())

    def _clock(self, experiment: Experiment, device: torch.device) -> Clock | None:
        if self.clock == "wall":
            return None
        step = seconds_per_step(experiment, device) if self.step_seconds is None else self.step_seconds
        return Clock(experiment.peers, step, self.speeds, self.network)


class _Meter:
    """Counts what the peers send, and lets the clock, if there is one, know of steps and messages."""

    def __init__(self, cohort: Cohort, clock: Clock | None) -> None:
        self._cohort, self._clock = cohort, clock
        self.sent = 0.0  # bytes of all peers together
        self.wall = 0.0  # seconds of this machine, evaluations left out

    def begin(self) -> None:
        """A round begins."""
        self._present = torch.as_tensor(self._cohort.present)
        self._counted = torch.zeros(len(self._present), dtype=torch.int64)
        if self._clock is not None and self._cohort.comes_and_goes:
            self._clock.gather(self._present)

    def answer(self, message: Message) -> Tree:
        """Everyone computes up to the message, then it takes its time."""
        one = message.row()
        self.sent += one.bytes(len(self._present)) * len(self._present)
        if self._clock is not None:
            self._compute(self._clock)
            self._clock.exchange(self._present, one)
        return message.stacked()

    def end(self) -> None:
        """Count the steps after the last message of the round."""
        if self._clock is not None and (self._cohort.steps > self._counted).any():
            self._compute(self._clock)

    def _compute(self, clock: Clock) -> None:
        steps = self._cohort.steps
        clock.compute(self._present, steps - self._counted)
        self._counted = steps
