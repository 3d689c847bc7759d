"""Lockstep: the peers as ordinary objects in this process, stepped message by message; the reference of the others."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch

from labkit.data.loading import loaders_closed
from labkit.data.thread_generator import ThreadGenerator
from labkit.engines.asynchronous.async_peers import AsyncSingles
from labkit.engines.asynchronous.simulate import simulate
from labkit.engines.barriers import Meeting, exhaust
from labkit.engines.clock import Clock, Timed
from labkit.engines.control import Control
from labkit.engines.evaluation import rebuilt
from labkit.engines.expected_memory import ledger
from labkit.engines.experiment import Experiment, Outcome
from labkit.engines.local_peers import LocalPeers
from labkit.engines.peer import OnePeer
from labkit.engines.rounds import InProcess, train
from labkit.exchange import Message
from labkit.history.rows import Reporter
from labkit.tree import Tree


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
        with ThreadGenerator(experiment.seed):
            if experiment.traits.asynchronous:
                device = torch.device(self.device)
                return simulate(experiment, AsyncSingles, self.virtual(experiment, device), report, control, device)
            return exhaust(self.walk(experiment, report, control))

    def walk(self, experiment: Experiment, report: Reporter, control: Control) -> Generator[Meeting, None, Outcome]:
        """The same training, which stops at every barrier; it seeds torch's random state and goes on with it."""
        device = torch.device(self.device)
        clock = self.virtual(experiment, device)
        local = LocalPeers(experiment, range(experiment.peers), device, single=OnePeer)
        runtime = InProcess(local, clock or Clock(), _answer, report, control)
        torch.manual_seed(experiment.seed)
        failed: Exception | None = None
        try:
            for meeting in train(experiment, local, runtime):
                with runtime.clock.stopped():
                    yield meeting
        except Exception as error:  # noqa: BLE001  whoever asks for the outcome raises it
            failed = error
            local.rewind()
        best = rebuilt(experiment, local.best.states)
        outcome = Outcome(experiment.models_of(local.model), runtime.clock.timeline(), best=best, error=failed)
        return replace(outcome, memory=ledger(experiment, local.memory))


def _answer(messages: list[Message]) -> Sequence[Tree]:
    return type(messages[0]).lockstep(messages)
