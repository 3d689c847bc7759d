"""Simulation of asynchronous peers, who wait for the slowest at most; virtual time decides who comes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import nan
from statistics import fmean
from time import perf_counter

import numpy as np
import torch

from labkit.data.thread_generator import settle
from labkit.engines.asynchronous.async_peers import AsyncPeers, Told
from labkit.engines.asynchronous.request_handlers import ServerHandler, StalenessGate, builder, request_handler
from labkit.engines.budget import Spending
from labkit.engines.clock import Clock, VirtualClock
from labkit.engines.control import Control
from labkit.engines.evaluation import NOTHING, Best, Evaluation, Scores, rebuilt
from labkit.engines.experiment import Experiment, Outcome, require_finite
from labkit.exchange import Request
from labkit.history.lanes import MOST_LANES, Bursts
from labkit.history.rows import Interval, Reporter, Row
from labkit.tasks.sync import Timeline

_MOST_INTERVALS = 2_000_000  # of all peers together; a longer run keeps no timeline


class AsyncSimulation:
    """One asynchronous run, event by event: a peer has computed its request, or the request arrives where it goes.

    Events of the same moment happen in the order of the peers. A row is written when the slowest peer has finished its
    round, as 𝒯_sync = ∩ 𝒯ᵢ; faster ones may then be ahead, and have sent more. `clock` tells each peer's speed and the
    link; without `virtual`, rows have this machine's seconds.
    """

    def __init__(
        self,
        experiment: Experiment,
        peers: Callable[..., AsyncPeers],
        clock: VirtualClock | None,
        report: Reporter,
        device: torch.device,
    ) -> None:
        everybody = range(experiment.peers)
        self._experiment, self._report = experiment, report
        self._clock, self._virtual = clock or VirtualClock(experiment.peers, 1.0), clock is not None
        self._handler = request_handler(experiment, device)
        self._peers = peers(experiment, self._handler, device)
        self._gate = StalenessGate(everybody, experiment.traits.policy.bound)
        self._evaluation, self._best = Evaluation(experiment, device), Best()
        self._seconds = [
            experiment.local_steps(k) * each
            for k, each in zip(everybody, self._clock.seconds_per_step.tolist(), strict=True)
        ]  # that a round of each peer takes
        self._queue: list[tuple[float, int, Request | None]] = []
        self._back = [0.0 for _ in everybody]  # seconds that the reply to each peer travels
        self._starts: list[list[float]] = [[] for _ in everybody]
        self._bursts = [Bursts() for _ in everybody[:MOST_LANES]]
        self._told: list[list[Told]] = [[] for _ in everybody]
        self._staleness: list[list[int]] = [[] for _ in everybody]
        self._sent, self._steps, self._over, self._wall = 0.0, 0.0, False, Clock()
        self._spending, budget = None, experiment.budget
        if budget is not None:
            self._spending = Spending(budget, lambda: self._spent, not experiment.evaluate_every, begun=False)

    def run(self, control: Control) -> Outcome:
        """All rounds of all peers, or as many as `control` lets pass."""
        failed: Exception | None = None
        try:
            self._happen(control)
        except Exception as error:  # noqa: BLE001  whoever asks for the outcome raises it
            failed = error
        models = self._experiment.models_of(builder(self._experiment, self._handler.params))
        best = rebuilt(self._experiment, self._best.states)
        return Outcome(models, self._timeline(), self._measured(self._staleness), best, failed)

    def _happen(self, control: Control) -> None:
        for k in range(self._experiment.peers):
            self._begin(k, 0.0)
        while self._queue and not self._over and self._proceeds(control):
            self._adopt(control.rates)
            now, k, request = heappop(self._queue)
            if request is None:
                self._ask(k, now)
            else:
                self._arrive(k, now, request)

    def _proceeds(self, control: Control) -> bool:
        with self._wall.stopped():
            return control.proceed()

    # -- events

    def _adopt(self, rates: Sequence[float]) -> None:
        for event in self._peers.rate.adopt(rates, self._gate.slowest + 1, self._now(self._queue[0][0])):
            self._handler.adopt(rates[-1])
            self._report(event)

    def _begin(self, k: int, now: float) -> None:
        if self._virtual and self._starts[k] and k < MOST_LANES and self._bursts[k].tells(perf_counter()):
            begun = self._starts[k][-1]
            self._report(Interval(k, self._gate.done[k], begun, begun + self._seconds[k], None, now))
        self._starts[k].append(now)
        self._peers.begin(k, self._gate.done[k] + 1)
        heappush(self._queue, (now + self._seconds[k], k, None))

    def _ask(self, k: int, now: float) -> None:
        request, told = self._peers.ask(k)
        require_finite([told.loss], self._gate.done[k] + 1, [k])
        self._told[k].append(told)
        self._sent += request.bytes(self._experiment.peers)
        there, self._back[k] = request.there_and_back(self._clock.link)
        if there:
            heappush(self._queue, (now + there, k, request))
        else:
            self._arrive(k, now, request)

    def _arrive(self, k: int, now: float, request: Request) -> None:
        slowest = self._gate.slowest
        self._staleness[k].append(self._handler.take(k, self._gate.done[k] + 1, request))
        free = self._gate.finish(k)
        if self._gate.slowest > slowest:
            self._row(self._gate.slowest, now)
            settle()
        for j in free:
            self._peers.answer(j, self._handler.reply(j))
            if self._gate.done[j] < self._experiment.rounds:
                self._begin(j, now + self._back[j])

    # -- what is known of them

    def _row(self, number: int, now: float) -> None:
        each = [own[number - 1] for own in self._told]
        sent, seconds = self._sent / self._experiment.peers, self._now(now)
        self._steps += fmean(told.steps for told in each)
        self._spent = self._steps, sent, seconds
        self._over, due = (False, False) if self._spending is None else self._spending.after_round()
        with self._wall.stopped():
            found = self._scores() if self._experiment.evaluates(number, due) else NOTHING
        names = dict.fromkeys(name for told in each for name in told.logged)
        logged = {name: tuple(told.logged.get(name, nan) for told in each) for name in names}
        losses = tuple(told.loss for told in each)
        self._report(found.put_into(Row(number, losses, None, sent, seconds, steps=self._steps, logged=logged)))

    def _now(self, virtual: float) -> float:
        """The run's seconds at this moment of virtual time."""
        return virtual if self._virtual else self._wall.seconds

    def _scores(self) -> Scores:
        """What the server's model, or those of the peers score."""
        everybody, central = range(self._experiment.peers), isinstance(self._handler, ServerHandler)
        build = builder(self._experiment, self._handler.params)
        found = NOTHING
        if not len(self._evaluation.targets):
            pass
        elif central:
            found = self._evaluation.alone(build(0), 0)
        else:
            found = self._peers.scores([self._handler.params(k) for k in everybody], self._evaluation)
        if self._experiment.keeps_best and found.losses is not None:
            self._best.note(found, everybody[: 1 if central else None], build)
        return found._replace(metrics=found.metrics | self._evaluation.clients(build, everybody))

    def _measured(self, each: list[list[int]]) -> np.ndarray:
        """Of each peer, the rounds that everybody has finished, [n, rounds]."""
        return np.array([own[: self._gate.slowest] for own in each]).reshape(len(each), -1)

    def _timeline(self) -> Timeline | None:
        rounds, peers = self._gate.slowest, self._experiment.peers
        if not (self._virtual and rounds) or rounds * peers > _MOST_INTERVALS:
            return None
        start = np.array([own[:rounds] for own in self._starts])
        return Timeline(start, start + np.array(self._seconds)[:, None], self._experiment.traits.policy, who="peer")


def simulate(
    experiment: Experiment,
    peers: Callable[..., AsyncPeers],
    clock: VirtualClock | None,
    report: Reporter,
    control: Control,
    device: torch.device,
) -> Outcome:
    """Carry out an asynchronous experiment; see `labkit.engines.experiment.Engine`."""
    torch.manual_seed(experiment.seed)  # that of this thread
    return AsyncSimulation(experiment, peers, clock, report, device).run(control)
