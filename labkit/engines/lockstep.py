"""Lockstep: the peers as ordinary objects in this process, stepped message by message; the reference of the others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import torch

from labkit.engines.cohort import Cohort
from labkit.engines.control import Control
from labkit.engines.drive import exhaust
from labkit.engines.experiment import Experiment, Outcome
from labkit.engines.peer import OnePeer
from labkit.exchange import Message
from labkit.history import Row
from labkit.tree import Tree


class Meeting(NamedTuple):
    """A barrier of round `round` (from 1): what the `peers` send there, and the replies they are about to receive."""

    round: int
    peers: Sequence[int]
    messages: Sequence[Message]
    replies: Sequence[Tree]


@dataclass(frozen=True)
class Lockstep:
    """Train n peers one after the other, from barrier to barrier: slow, exact, with tracebacks you can read."""

    device: str = "cpu"
    name = "lockstep"
    clock = "wall"
    ledger = "formula"

    def run(self, experiment: Experiment, report: Callable[[Row], None], control: Control) -> Outcome:
        """Train all peers; see `labkit.engines.experiment.Engine`."""
        with torch.random.fork_rng():
            return exhaust(self.walk(experiment, report, control))

    def walk(
        self, experiment: Experiment, report: Callable[[Row], None], control: Control
    ) -> Generator[Meeting, None, Outcome]:
        """The same training, which stops at every barrier; it seeds torch's random state and goes on with it."""
        device = torch.device(self.device)
        test_x, test_y = experiment.dataset.test_x.to(device), experiment.dataset.test_y.to(device)
        cohort = Cohort(experiment, range(experiment.peers), device, single=OnePeer)
        sent, start = 0.0, perf_counter()
        torch.manual_seed(experiment.seed)
        for number in range(1, experiment.rounds + 1):
            if not control.proceed():
                break
            cohort.begin(number)
            for messages, replies in cohort.barriers(_answer):
                sent += sum(message.bytes(len(messages)) for message in messages) / experiment.peers
                yield Meeting(number, tuple(cohort.present), messages, replies)
            losses = cohort.mean_losses(number)
            cohort.end()
            tested = experiment.evaluates(number)
            accuracies = cohort.accuracies(test_x, test_y, _answer) if tested else None
            report(Row(number, losses, accuracies, sent, perf_counter() - start, cohort.who))
        return Outcome(experiment.models_of(cohort.model))


def _answer(messages: list[Message]) -> Sequence[Tree]:
    return type(messages[0]).lockstep(messages)
