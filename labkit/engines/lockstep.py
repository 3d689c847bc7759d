"""Lockstep: the peers as ordinary objects in this process, stepped message by message; the reference of the others."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import torch

from labkit.data.loading import loaders_closed
from labkit.engines.asynchronous.async_peers import OneByOne
from labkit.engines.asynchronous.simulate import run_events
from labkit.engines.clock import Meter, Timed
from labkit.engines.control import Control
from labkit.engines.experiment import Experiment, Outcome
from labkit.engines.local_peers import LocalPeers
from labkit.engines.peer import OnePeer
from labkit.engines.rounds import exhaust
from labkit.exchange import Message
from labkit.history.rows import Reporter, Row
from labkit.tree import Tree


class Meeting(NamedTuple):
    """A barrier of round `round` (from 1): what the `peers` send there, and the replies they are about to receive."""

    round: int
    peers: Sequence[int]
    messages: Sequence[Message]
    replies: Sequence[Tree]


@dataclass(frozen=True)
class Lockstep(Timed):
    """Train n peers one after the other, from barrier to barrier: slow, exact, with tracebacks you can read.

    `network`, `speeds` and `step_seconds` are those of `labkit.Simulator`.
    """

    name = "lockstep"
    ledger = "formula"

    @loaders_closed()
    def run(self, experiment: Experiment, report: Reporter, control: Control) -> Outcome:
        """Train all peers; see `labkit.engines.experiment.Engine`."""
        if experiment.traits.asynchronous:
            device = torch.device(self.device)
            return run_events(experiment, OneByOne, self.virtual(experiment, device), report, control, device)
        with torch.random.fork_rng():
            return exhaust(self.walk(experiment, report, control))

    def walk(self, experiment: Experiment, report: Reporter, control: Control) -> Generator[Meeting, None, Outcome]:
        """The same training, which stops at every barrier; it seeds torch's random state and goes on with it."""
        device = torch.device(self.device)
        test_x, test_y = experiment.dataset.test_x.to(device), experiment.dataset.test_y.to(device)
        clock = self.virtual(experiment, device)
        local = LocalPeers(experiment, range(experiment.peers), device, single=OnePeer)
        meter, start = Meter(local, clock, report), perf_counter()
        torch.manual_seed(experiment.seed)
        for number in range(1, experiment.rounds + 1):
            if not control.proceed():
                break
            for event in local.adopt(control.rates, number, perf_counter() - start if clock is None else clock.seconds):
                report(event)
            local.begin(number)
            meter.begin()
            for messages, replies in local.barriers(_answer):
                meter.meet(messages[0])
                yield Meeting(number, tuple(local.present), messages, replies)
            meter.end()
            losses = local.mean_losses(number)
            local.end()
            tested = experiment.evaluates(number)
            accuracies = local.accuracies(test_x, test_y, _answer) if tested else None
            seconds = perf_counter() - start if clock is None else clock.seconds
            report(
                Row(number, losses, accuracies, meter.sent / experiment.peers, seconds, local.who, local.learning_rate)
            )
        return Outcome(experiment.models_of(local.model), None if clock is None else clock.timeline())


def _answer(messages: list[Message]) -> Sequence[Tree]:
    return type(messages[0]).lockstep(messages)
