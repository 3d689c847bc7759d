"""Simulator: the stacked engine; thousands of peers on one machine, and a virtual clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from labkit.checks import whole
from labkit.cluster.preparation import keep_memory
from labkit.data.loading import loaders_closed
from labkit.data.thread_generator import ThreadGenerator
from labkit.engines.asynchronous.async_peers import AsyncSingles, AsyncStacks
from labkit.engines.asynchronous.simulate import simulate
from labkit.engines.barriers import exhaust
from labkit.engines.clock import Clock, Timed
from labkit.engines.control import Control
from labkit.engines.evaluation import rebuilt
from labkit.engines.expected_memory import ledger
from labkit.engines.experiment import Experiment, Outcome
from labkit.engines.local_peers import LocalPeers
from labkit.engines.lockstep import Lockstep
from labkit.engines.peer import OnePeer
from labkit.engines.rounds import InProcess, train
from labkit.history.rows import Reporter


@dataclass(frozen=True)
class Simulator(Timed):
    """Thousands of peers on this machine; with `network` or `speeds` a virtual clock tells the seconds.

    `network` is the link between every two peers, `speeds[k]` peer k's speed (1 is this machine), `step_seconds` the
    time of one local step at speed 1 (measured on this machine when it is not given). `block` is how many peers are
    computed at once (measured for each model when it is not given).

    What a model draws at random as it runs, such as Dropout's masks, follows from the run's seed, and differs from
    engine to engine. Torch's generator, from which the notebook draws, is left alone.
    """

    block: int | None = None
    name = "stacked"
    ledger = "formula"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block is not None:
            whole(self.block, "block")

    @loaders_closed()
    def run(self, experiment: Experiment, report: Reporter, control: Control) -> Outcome:
        """Train all peers; see `labkit.engines.experiment.Engine`."""
        holds = experiment.traits.holds
        if holds is not None and not holds.alike:  # peers that hold different layers cannot be stacked
            return Lockstep(self.network, self.speeds, self.step_seconds, self.device).run(experiment, report, control)
        device = torch.device(self.device)
        keep_memory()
        with ThreadGenerator(experiment.seed):
            clock = self.virtual(experiment, device)
            if experiment.traits.asynchronous:
                peers = partial(AsyncStacks, most=self.block) if experiment.stackable else AsyncSingles
                return simulate(experiment, peers, clock, report, control, device)
            single = None if experiment.stackable else OnePeer
            local = LocalPeers(experiment, range(experiment.peers), device, most=self.block, single=single)
            answer = local.joined(lambda message: message.stacked())
            runtime = InProcess(local, clock or Clock(), answer, report, control)
            torch.manual_seed(experiment.seed)
            failed: Exception | None = None
            try:
                exhaust(train(experiment, local, runtime))
            except Exception as error:  # noqa: BLE001  whoever asks for the outcome raises it
                failed = error
                local.rewind()
            best = rebuilt(experiment, local.best.states)
            outcome = Outcome(experiment.models_of(local.model), runtime.clock.timeline(), best=best, error=failed)
            return replace(
                outcome, memory=ledger(experiment, local.memory, "stacked" if single is None else "lockstep")
            )
