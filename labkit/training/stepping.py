"""step_through: a training that stops at every message, to see who sends what to whom."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from labkit.data.thread_generator import ThreadGenerator
from labkit.engines.barriers import Meeting
from labkit.engines.control import Control
from labkit.engines.experiment import Experiment, Outcome
from labkit.engines.lockstep import Lockstep
from labkit.errors import SettingError
from labkit.exchange.barrier import Barrier
from labkit.history.history import History
from labkit.training.plan import plan
from labkit.training.run import blank
from labkit.training.settings import Settings, takes_settings


@takes_settings
def step_through(settings: Settings) -> StepThrough:
    """Train in lockstep, message by message: `next()` goes on to the next one and returns the Barrier there.

    The settings are those of `labkit.train`, but for `on`. Raises what `labkit.train` does, and SettingError for an
    algorithm whose peers do not meet at barriers; `next()` raises what goes wrong on the way, with its traceback.

    >>> import labkit as lk, torch
    >>> walk = lk.step_through(lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), peers=2, seed=1)
    >>> barrier = next(walk)
    >>> barrier.name, barrier.round, barrier.transfers
    ('Mean', 1, (Transfer(source=0, target=1, nbytes=2600), Transfer(source=1, target=0, nbytes=2600)))
    """
    if settings.on is not None:
        raise SettingError("step_through goes step by step in this process: leave on= away, or train(…, on=…).")
    if settings.until is not None:
        raise SettingError("step_through ends where you stop calling next(): leave until= away.")
    engine, experiment = plan(replace(settings, on=Lockstep()))
    if experiment.traits.asynchronous:
        raise SettingError(
            f"The peers of {type(experiment.algorithm).__name__} do not meet at barriers: step through an algorithm "
            "that waits for all, such as AllReduce(), and look at the timeline of this one's history."
        )
    return StepThrough(experiment, blank(engine, experiment))


__test__ = {"step_through": step_through}  # its example, which doctest does not find behind the decorator


class StepThrough(Iterator[Barrier], AbstractContextManager["StepThrough"]):
    """The walk that `step_through` begins; `barrier` is where it stands, `history` what it has measured so far.

    No thread works in the background: between two messages everything rests, and `close()` ends it for good, as does
    leaving its `with` block.
    """

    def __init__(self, experiment: Experiment, history: History) -> None:
        self.history = history
        self.barrier: Barrier | None = None
        self._rounds, self._served = experiment.rounds, experiment.served
        self._random = ThreadGenerator(experiment.seed)  # in between what is drawn is the notebook's own
        self._walk: Generator[Meeting, None, Outcome] = Lockstep().walk(experiment, history.take, Control())

    def __next__(self) -> Barrier:
        with self._random:
            try:
                met = next(self._walk)
            except StopIteration as end:
                if isinstance(end.value, Outcome):
                    self.history.models = end.value.models
                    if end.value.error is not None:
                        raise end.value.error from None
                raise
        self.barrier = Barrier.of(*met, served=self._served)
        return self.barrier

    def close(self) -> None:
        """End the walk here; `history` keeps the rounds that were finished."""
        self._walk.close()
        self.history.stopped = len(self.history.rows) < self._rounds

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        at = self.barrier
        where = "before the first message" if at is None else f"round {at.round} of {self._rounds}, message {at.number}"
        return f"StepThrough: {self.history.algorithm}, {self.history.peers} peers, {where}"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        if self.barrier is None:
            return {"text/plain": repr(self)}
        return self.barrier._repr_mimebundle_(**options)
