"""Rounds: the one loop by which every engine trains peers that meet at barriers.

What engines do each in its own way, such as how a message gets to the others, is their `Runtime`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Protocol

from labkit.data.thread_generator import settle
from labkit.engines.barriers import Answer, Meeting
from labkit.engines.budget import Spending
from labkit.engines.clock import Clock
from labkit.engines.control import Control
from labkit.engines.evaluation import NOTHING
from labkit.engines.experiment import Experiment
from labkit.engines.local_peers import LocalPeers
from labkit.exchange import Message
from labkit.history.rows import Event, Interval, Reporter, Row
from labkit.tree import Tree


def train(
    experiment: Experiment, local: LocalPeers, runtime: Runtime, start: int = 0
) -> Generator[Meeting, None, None]:
    """Train the peers of this process from round `start` + 1 on, stopping at every barrier for whoever wants to look.

    The seconds of a row are those of training: neither evaluation nor pauses count.
    """
    peers, mine, spending = experiment.peers, len(local.members) / experiment.peers, None
    if experiment.budget is not None:

        def spent() -> tuple[float, ...]:
            with runtime.clock.stopped():
                return runtime.summed((local.taken / peers, runtime.sent / peers, mine * runtime.clock.seconds))

        spending = Spending(experiment.budget, spent, parts=not experiment.evaluate_every, begun=start > 0)
    local.keep(start)
    for number in range(start + 1, experiment.rounds + 1):
        if not runtime.proceed(number):
            break
        for event in local.adopt(runtime.rates, number, runtime.clock.seconds):
            runtime.report(event)
        local.begin(number)
        runtime.begin(number)
        yield from local.round(runtime.answer)  # the algorithm's generators, from message to message
        runtime.end()
        measured = local.measured()  # which raises for one that is not finite
        local.end()
        over, due = (False, False) if spending is None else spending.after_round()
        found = NOTHING
        if experiment.evaluates(number, due):
            with runtime.clock.stopped():
                found = local.scores(runtime.predict)
        sent, seconds = runtime.sent / peers, runtime.clock.seconds
        row = Row(number, measured.losses, None, sent, seconds, local.sampled, local.learning_rate)
        row = replace(row, steps=local.taken / peers, logged=measured.logged)
        local.keep(number)
        runtime.report(found.put_into(row))
        runtime.checkpoint(number)
        if over:
            break


class Runtime(Protocol):
    """What is around the loop in one process: who answers, who steers, who hears of rounds, and what is measured."""

    clock: Clock

    @property
    def sent(self) -> float:
        """Bytes that the peers of this process have sent."""

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that the user has asked for."""

    def proceed(self, number: int) -> bool:
        """Wait while paused; False once the run is to stop before round `number`."""

    def begin(self, number: int) -> None:
        """The peers of this process begin the round."""

    def answer(self, messages: list[Message]) -> Sequence[Tree]:
        """The replies to the messages with which this process comes to a barrier."""

    def predict(self, messages: list[Message]) -> Sequence[Tree]:
        """The same in a prediction, whose messages do not count as sent."""

    def end(self) -> None:
        """The peers have done their work in this round."""

    def report(self, news: Row | Event) -> None:
        """Tell of what the peers of this process have done."""

    def summed(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """The sums of what all processes say."""

    def checkpoint(self, number: int) -> None:
        """Save how things are after round `number`, if it is time to."""


class InProcess:
    """All peers are in this process: `control` steers them, and what they send is counted by the messages' formula."""

    def __init__(self, local: LocalPeers, clock: Clock, answer: Answer, report: Reporter, control: Control) -> None:
        self._local, self._answer, self._control = local, answer, control
        self.clock, self.report, self.predict = clock, report, answer
        self.sent = 0.0

    @property
    def rates(self) -> tuple[float, ...]:
        return self._control.rates

    def proceed(self, number: int) -> bool:
        with self.clock.stopped():
            return self._control.proceed()

    def begin(self, number: int) -> None:
        self.clock.begin(self._local)

    def answer(self, messages: list[Message]) -> Sequence[Tree]:
        cost, present = self._local.cost(messages), len(self._local.present)
        self.sent += cost.bytes(present) * present
        self._tell(self.clock.meet(cost))
        return self._answer(messages)

    def end(self) -> None:
        self._tell(self.clock.end())

    def summed(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        return numbers

    def checkpoint(self, number: int) -> None:
        settle()  # there is nobody to go on where this process ends, and nothing to save

    def _tell(self, intervals: list[Interval]) -> None:
        for interval in intervals:
            self.report(interval)
