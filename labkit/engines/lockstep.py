"""Lockstep: the peers as ordinary objects in this process, stepped message by message; the reference of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from labkit.engines.cohort import Cohort
from labkit.engines.control import Control
from labkit.engines.experiment import Experiment, Outcome
from labkit.engines.peer import OnePeer
from labkit.exchange import Message
from labkit.history import Row
from labkit.tree import Tree


@dataclass(frozen=True)
class Lockstep:
    """Train n peers one after the other, from barrier to barrier: slow, exact, with tracebacks you can read.

    `watch(round, messages, replies)` is called at every barrier with what all peers send and receive there.
    """

    device: str = "cpu"
    watch: Callable[[int, Sequence[Message], Sequence[Tree]], None] | None = None
    name = "lockstep"
    clock = "wall"
    ledger = "formula"

    def run(self, experiment: Experiment, report: Callable[[Row], None], control: Control) -> Outcome:
        """Train all peers; see `labkit.engines.experiment.Engine`."""
        device = torch.device(self.device)
        test_x, test_y = experiment.dataset.test_x.to(device), experiment.dataset.test_y.to(device)
        cohort = Cohort(experiment, range(experiment.peers), device, single=OnePeer)
        sent, number, start = 0.0, 0, perf_counter()

        def answer(messages: list[Message]) -> Sequence[Tree]:
            nonlocal sent
            replies = type(messages[0]).lockstep(messages)
            sent += sum(message.bytes(len(messages)) for message in messages) / experiment.peers
            if self.watch is not None:
                self.watch(number, messages, replies)
            return replies

        with torch.random.fork_rng():
            torch.manual_seed(experiment.seed)
            for number in range(1, experiment.rounds + 1):
                if not control.proceed():
                    break
                cohort.begin(number)
                cohort.round(answer)
                losses = cohort.mean_losses(number)
                cohort.end()
                tested = experiment.evaluates(number)
                accuracies = cohort.accuracies(test_x, test_y, _answer) if tested else None
                report(Row(number, losses, accuracies, sent, perf_counter() - start, cohort.who))
        return Outcome(experiment.models_of(cohort.model))


def _answer(messages: list[Message]) -> Sequence[Tree]:
    return type(messages[0]).lockstep(messages)
