"""Events: peers that wait for nobody but, at most, the slowest; virtual time decides who comes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from time import perf_counter

import numpy as np
import torch

from labkit.engines.asynchronous.async_peers import Fleet
from labkit.engines.asynchronous.request_handlers import ServerDesk, builder, desk, loaded
from labkit.engines.asynchronous.staleness_gate import Pace
from labkit.engines.clock import VirtualClock
from labkit.engines.control import Control
from labkit.engines.evaluation import accuracies, classes
from labkit.engines.experiment import Experiment, Outcome, require_finite
from labkit.exchange import Request
from labkit.history.lanes import MOST_LANES, Bursts
from labkit.history.rows import Interval, Reporter, Row
from labkit.tasks.sync import Timeline

_MOST_INTERVALS = 2_000_000  # of all peers together; a longer run keeps no timeline


class Events:
    """One asynchronous run, event by event: a peer has computed its request, or the request arrives where it goes.

    Events of the same moment happen in the order of the peers. A row is written when the slowest peer has finished its
    round, as 𝒯_sync = ∩ 𝒯ᵢ; faster ones may then be ahead, and have sent more. `clock` tells each peer's speed and the
    link; without `virtual`, rows have this machine's seconds.
    """

    def __init__(
        self,
        experiment: Experiment,
        fleet: Callable[..., Fleet],
        clock: VirtualClock | None,
        report: Reporter,
        device: torch.device,
    ) -> None:
        peers = range(experiment.peers)
        self._experiment, self._report = experiment, report
        self._clock, self._virtual = clock or VirtualClock(experiment.peers, 1.0), clock is not None
        self._desk = desk(experiment, device)
        self._fleet = fleet(experiment, self._desk, device)
        self._pace = Pace(peers, experiment.traits.policy.bound)
        self._test = experiment.dataset.test_x.to(device), experiment.dataset.test_y.to(device)
        self._seconds = [
            experiment.local_steps(k) * each
            for k, each in zip(peers, self._clock.seconds_per_step.tolist(), strict=True)
        ]  # that a round of each peer takes
        self._queue: list[tuple[float, int, Request | None]] = []
        self._back = [0.0 for _ in peers]  # seconds that the reply to each peer travels
        self._starts: list[list[float]] = [[] for _ in peers]
        self._bursts = [Bursts() for _ in peers[:MOST_LANES]]
        self._losses: list[list[float]] = [[] for _ in peers]
        self._staleness: list[list[int]] = [[] for _ in peers]
        self._sent, self._wall, self._since = 0.0, 0.0, perf_counter()

    def run(self, control: Control) -> Outcome:
        """All rounds of all peers, or as many as `control` lets pass."""
        for k in range(self._experiment.peers):
            self._begin(k, 0.0)
        while self._queue and control.proceed():
            self._adopt(control.rates)
            now, k, request = heappop(self._queue)
            if request is None:
                self._ask(k, now)
            else:
                self._arrive(k, now, request)
        models = self._experiment.models_of(builder(self._experiment, self._desk.params))
        return Outcome(models, self._timeline(), self._measured(self._staleness))

    # -- events

    def _adopt(self, rates: Sequence[float]) -> None:
        for event in self._fleet.rate.adopt(rates, self._pace.slowest + 1, self._now(self._queue[0][0])):
            self._desk.adopt(rates[-1])
            self._report(event)

    def _begin(self, k: int, now: float) -> None:
        if self._virtual and self._starts[k] and k < MOST_LANES and self._bursts[k].tells(perf_counter()):
            begun = self._starts[k][-1]
            self._report(Interval(k, self._pace.done[k], begun, begun + self._seconds[k], None, now))
        self._starts[k].append(now)
        self._fleet.begin(k, self._pace.done[k] + 1)
        heappush(self._queue, (now + self._seconds[k], k, None))

    def _ask(self, k: int, now: float) -> None:
        request, loss = self._fleet.ask(k)
        require_finite([loss], self._pace.done[k] + 1, [k])
        self._losses[k].append(loss)
        self._sent += request.bytes(self._experiment.peers)
        there, self._back[k] = request.there_and_back(self._clock.link)
        if there:
            heappush(self._queue, (now + there, k, request))
        else:
            self._arrive(k, now, request)

    def _arrive(self, k: int, now: float, request: Request) -> None:
        slowest = self._pace.slowest
        self._staleness[k].append(self._desk.take(k, self._pace.done[k] + 1, request))
        free = self._pace.finish(k)
        if self._pace.slowest > slowest:
            self._row(self._pace.slowest, now)
        for j in free:
            self._fleet.answer(j, self._desk.reply(j))
            if self._pace.done[j] < self._experiment.rounds:
                self._begin(j, now + self._back[j])

    # -- what is known of them

    def _row(self, number: int, now: float) -> None:
        self._wall += perf_counter() - self._since
        tested = self._experiment.evaluates(number)
        self._report(
            Row(
                number,
                tuple(losses[number - 1] for losses in self._losses),
                self._accuracies() if tested else None,
                self._sent / self._experiment.peers,
                self._now(now),
            )
        )
        self._since = perf_counter()

    def _now(self, virtual: float) -> float:
        """The run's seconds at this moment of virtual time."""
        return virtual if self._virtual else self._wall

    def _accuracies(self) -> tuple[float, ...]:
        inputs, targets = self._test
        if isinstance(self._desk, ServerDesk):
            model = loaded(self._experiment.fresh_model(), self._desk.params(0)).to(inputs.device).eval()
            return accuracies(classes(model, inputs).unsqueeze(0), targets)
        each = [self._desk.params(k) for k in range(self._experiment.peers)]
        return accuracies(self._fleet.classes(each, inputs), targets)

    def _measured(self, each: list[list[int]]) -> np.ndarray:
        """Of each peer, the rounds that everybody has finished, [n, rounds]."""
        return np.array([own[: self._pace.slowest] for own in each]).reshape(len(each), -1)

    def _timeline(self) -> Timeline | None:
        rounds, peers = self._pace.slowest, self._experiment.peers
        if not (self._virtual and rounds) or rounds * peers > _MOST_INTERVALS:
            return None
        start = np.array([own[:rounds] for own in self._starts])
        return Timeline(start, start + np.array(self._seconds)[:, None], self._experiment.traits.policy, who="peer")


def run_events(
    experiment: Experiment,
    fleet: Callable[..., Fleet],
    clock: VirtualClock | None,
    report: Reporter,
    control: Control,
    device: torch.device,
) -> Outcome:
    """Carry out an asynchronous experiment; see `labkit.engines.experiment.Engine`."""
    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed)
        return Events(experiment, fleet, clock, report, device).run(control)
