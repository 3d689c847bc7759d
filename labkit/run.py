"""Run: the handle of a training that goes on in the background."""

from __future__ import annotations

from labkit.background import Background
from labkit.engines.control import Control
from labkit.engines.experiment import Engine, Experiment
from labkit.errors import LabkitError
from labkit.history import History
from labkit.news import News, Report
from labkit.panel import Picture


class Run(Background):
    """A training under way: `.history` so far, `.result()` to wait, `.pause()`, `.resume()`, `.stop()`.

    As the last line of a cell it draws itself and keeps the picture live.
    """

    def __init__(self, engine: Engine, experiment: Experiment) -> None:
        super().__init__()
        self.history = blank(engine, experiment)
        self.rounds = experiment.rounds
        self._engine, self._experiment = engine, experiment
        self._start()

    def result(self, timeout: float | None = None) -> History:
        """Wait for the end and return the History; raise what made the run fail, or TimeoutError after `timeout` s.

        An interrupt (Ctrl-C, or the notebook's stop button) stops the run too.
        """
        self._wait(timeout)
        return self.history

    def _work(self) -> None:
        carry_out(self._engine, self._experiment, self.history, self._notify, self._control)

    @property
    def total(self) -> int:
        return self.rounds

    @property
    def progress(self) -> int:
        return len(self.history.rows)

    @property
    def stopped(self) -> bool:
        return self.history.stopped

    @property
    def status(self) -> str:
        if self.state == "failed":
            return f"failed: {self.error}"
        rows = self.history.rows
        text = f"{self.state} · round {len(rows)} of {self.rounds}"
        if not rows:
            return text
        accuracy = self.history.final.accuracy
        reached = "" if accuracy is None else f" · accuracy {accuracy:.1%}"
        return f"{text} · loss {rows[-1].loss:.3f}{reached}"

    @property
    def still(self) -> str:
        return f"Run: {self.history.algorithm}, {self.history.peers} peers, {self.rounds} rounds"

    def picture(self) -> Picture:
        """The learning curves so far."""
        return self.history.picture(rounds=self.rounds)

    def __repr__(self) -> str:
        if self.state == "failed":
            cause = self.error if isinstance(self.error, LabkitError) else repr(self.error)
            return f"Run failed: {cause}"
        done = len(self.history.rows)
        return f"Run {self.state}: {self.history.algorithm}, {self.history.peers} peers, round {done} of {self.rounds}"


def blank(engine: Engine, experiment: Experiment) -> History:
    """The history of an experiment before its first round."""
    algorithm = ", ".join(dict.fromkeys(type(it).__name__ for it in experiment.algorithms))
    return History(algorithm, engine.name, experiment.peers, engine.clock, engine.ledger)


def carry_out(engine: Engine, experiment: Experiment, history: History, report: Report, control: Control) -> None:
    """Fill the history, telling of all that is new."""

    def keep(news: News) -> None:
        history.take(news)
        report(news)

    outcome = engine.run(experiment, keep, control)
    history.models, history.timeline, history.staleness = outcome.models, outcome.timeline, outcome.staleness
    history.stopped = len(history.rows) < experiment.rounds
