"""Run: the handle of a training that goes on in the background."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic

from labkit.checks import number
from labkit.cluster.lab import Lab
from labkit.engines.cluster import Cluster
from labkit.engines.control import Control, Wish
from labkit.engines.experiment import Engine, Experiment
from labkit.errors import LabkitError, SettingError, let_go
from labkit.history.history import History, tensorboard_writer
from labkit.history.lanes import MOST_LANES, Lanes
from labkit.history.measures import in_words, mean_of, measures_of
from labkit.history.rows import Event, Interval, Reporter, Row, Update
from labkit.history.tensorboard import TensorBoardWriter
from labkit.plots.panel import Picture
from labkit.text import amount, in_words as in_short, remaining
from labkit.training.live import Background
from labkit.training.settings import as_data, versions


class Run(Background):
    """A training under way: `.history` so far, `.result()` to wait, `.pause()`, `.resume()`, `.stop()`.

    `.learning_rate` may be assigned while it goes on; `.tensorboard(folder)` lets TensorBoard follow it. As the last
    line of a cell it draws itself and keeps the picture live.

    >>> import labkit as lk, torch
    >>> run = lk.train(lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), peers=2, rounds=10)
    >>> len(run.result(timeout=60).rows), run.state
    (10, 'finished')
    """

    def __init__(self, engine: Engine, experiment: Experiment, until: Callable[[History], bool] | None = None) -> None:
        self.history = blank(engine, experiment)
        self.rounds = experiment.rounds
        super().__init__(self.rounds)
        self._engine, self._experiment = engine, experiment
        self._until, self._early = until, False
        self._until_failed: SettingError | None = None
        self._throughput, self._samples = Throughput(), _samples_per_round(experiment)
        self._lanes = Lanes("rank" if engine.name == "cluster" else "peer", engine.clock)
        self._asked: float | None = None  # the learning rate that was asked for, until a row has it
        self._heeded: float = math.inf  # the round from which it holds
        self._boards: list[TensorBoardWriter] = []
        self._telling = threading.Lock()
        if isinstance(engine, Cluster):
            engine.lab.track(self)
        self._start()

    def result(self, timeout: float | None = None) -> History:
        """Wait for the end and return the History; raise what made the run fail, or TimeoutError after `timeout` s.

        An interrupt (Ctrl-C, or the notebook's stop button) stops the run too.
        """
        self._wait(timeout)
        return self.history

    @property
    def lab(self) -> Lab | None:
        engine = self._engine
        return engine.lab if isinstance(engine, Cluster) and engine.lab.revives else None

    def pause(self) -> None:
        super().pause()
        self._throughput.forget()  # how fast it was says nothing of how fast it goes on

    def tensorboard(self, folder: str | Path) -> None:
        """Write what there is, and from now on what comes, as TensorBoard reads it: `tensorboard --logdir folder`.

        Raises MissingPackage where tensorboard is not installed.
        """
        with self._telling:
            board = tensorboard_writer(folder, self.history)
            if self.done:
                board.close()
            else:
                self._boards.append(board)

    @property
    def learning_rate(self) -> float:
        """The learning rate now; assign another while the run goes on, and all peers heed it from the same round on.

        It is that of the first peer's optimiser, and assigned it is everyone's. A schedule goes on from the new rate as
        if it had led there. In an asynchronous run each worker heeds it as it hears of it, and so does a server that
        steps the run's optimiser.

        Raises SettingError for what is no number from 0 on, and when the run has ended.
        """
        if self._asked is not None:
            return self._asked
        if self.history.rows and (last := self.history.rows[-1].learning_rate) is not None:
            return last
        optimizer = self._experiment.optimizer_like()
        return float(optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        rate = number(rate, "learning_rate")
        if self.done:
            raise SettingError(
                "The run has ended, so its learning rate cannot change any more: train again with another optimizer."
            )
        self._asked, self._heeded = rate, math.inf
        self._control.set_rate(rate)

    # -- as any work in the background

    def _work(self) -> None:
        try:
            carry_out(self._engine, self._experiment, self.history, self._heard, self._control)
            if self._until_failed is not None:
                raise self._until_failed
            self.history.stopped = self.history.stopped and not self._early
        finally:
            with self._telling:
                for board in self._boards:
                    board.close()

    def _heard(self, update: Update) -> None:
        if isinstance(update, Interval):
            self._lanes.add(update)
            return
        with self._telling:
            self.history.take(update)
            for board in self._boards:
                board.take(update)
        if isinstance(update, Row):
            self._throughput.note(update.round)
            if update.round >= self._heeded and update.learning_rate is not None:
                self._asked = None
            self._ask_whether_to_end(update)
        elif update.kind == "learning rate" and update.data["rate"] == self._asked:
            self._heeded = update.round
        self._notify()

    def _ask_whether_to_end(self, row: Row) -> None:
        """Let `until` say whether the run ends with this round; rows may still come that were under way."""
        if self._until is None or self._early or self._until_failed is not None:
            return
        try:
            self._early = bool(self._until(self.history))
        except Exception as error:  # noqa: BLE001  raised when the ranks have stopped in order
            untested = not row.evaluated and self._experiment.evaluates(self.rounds)
            if untested and isinstance(error, TypeError):
                return  # it compares what only tests tell, which is None in this row
            self._until_failed = SettingError(
                f"until failed after round {row.round} ({in_short(error)}): let it take the history so far and say "
                "whether to end."
            )
            self._until_failed.__cause__ = error
        if self._early or self._until_failed is not None:
            self._control.set(Wish.STOP)
        if self._early:
            self.history.take(Event(row.round, row.seconds, "early", {"after": row.round}))

    @property
    def state(self) -> str:
        if self._early and self.done and self._error is None:
            return "finished early"
        return super().state

    @property
    def progress(self) -> int:
        """The last round that is finished."""
        return self.history.rows[-1].round if self.history.rows else 0

    @property
    def status(self) -> str:
        if self.state == "failed":
            return f"failed: {self.error}"
        rows, last = self.history.rows, self.progress
        if self._control.waits and not self.done:
            return f"waiting: {self._control.waits}; lab.runs lists what is under way, and stops it"
        if not rows and self.state == "running" and isinstance(self._engine, Cluster):
            return "starting: the workers load torch and form one group, which takes some seconds the first time"
        said = [self.state, f"round {last} of {self.rounds}"]
        rate = self._throughput.rate
        if rate is not None and self.state == "running":
            said.append(remaining((self.rounds - last) / rate))
        if rows:
            said.append(f"loss {rows[-1].loss:.3f}")
            final = self.history.final
            at = f" at round {final.round}" if self.done and final.round < last else ""
            said += [f"{it} {in_words(it, mean_of(final, it))}{at}" for it in measures_of([final])]
            if rate is not None:
                said.append(f"{rate * self._samples:,.0f} samples/s")
            said.append(f"{amount(rows[-1].bytes)} sent per peer")
        return " · ".join(said)

    @property
    def still(self) -> str:
        return self._experiment.title

    # -- as work among others of its lab

    part_of = ""

    @property
    def title(self) -> str:
        """What it is."""
        return self.still

    @property
    def reached(self) -> str:
        """How far it is, in words."""
        at = f"round {self.progress} of {self.rounds}"
        return f"waiting, {at}: {self._control.waits}" if self._control.waits else f"{self.state}, {at}"

    def cancel(self) -> None:
        """What a lab does to its runs when it closes: it ends the ranks themselves, and the run says why."""

    def picture(self) -> Picture:
        """The learning curves so far; once it has ended, on the axis of what it did."""
        return self.history.picture(rounds=self.progress if self.done else self.rounds, whole=self.done)

    @property
    def replays(self) -> bool:
        """Whether the rows begin with the first round, as those of a resumed run need not."""
        return bool(self.history.rows) and self.history.rows[0].round == 1

    def picture_at(self, progress: int) -> Picture | None:
        """The learning curves as they were after so many rounds, on the axis of the whole run."""
        rows = [row for row in self.history.rows if row.round <= progress]
        return replace(self.history, rows=rows).picture(rounds=self.progress, whole=True) if rows else None

    def lanes(self) -> Picture | None:
        """When each worker, or peer on a virtual clock, computed, waited and communicated at last; None if unknown.

        The lanes are named with the last loss and accuracy of their peers, where each has one of its own.
        """
        rows, count = self.history.rows, self.history.peers
        if not rows or rows[-1].peers is not None or (self._lanes.who == "rank" and len(self._lanes) != count):
            return self._lanes.picture()
        tested = self.history.final.accuracies or ()
        each = len(tested) == count
        names = [
            f"{self._lanes.who} {k} · loss {loss:.2f}" + (f" · {tested[k]:.0%}" if each else "")
            for k, loss in enumerate(rows[-1].losses[:MOST_LANES])
        ]
        return self._lanes.picture(names, count)

    def __repr__(self) -> str:
        if self.state == "failed":
            return f"Run failed: {self.error if isinstance(self.error, LabkitError) else repr(self.error)}"
        at = f"round {self.progress} of {self.rounds}"
        of = f"{self.history.algorithm}, {self.history.peers} peers, {at}"
        return f"Run waiting: {of}: {self._control.waits}" if self._control.waits else f"Run {self.state}: {of}"


def blank(engine: Engine, experiment: Experiment) -> History:
    """The history of an experiment before its first round."""
    algorithm = ", ".join(dict.fromkeys(type(it).__name__ for it in experiment.algorithms))
    ledger = "formula" if experiment.served else engine.ledger
    history = History(algorithm, engine.name, experiment.peers, engine.clock, ledger)
    history.settings, history.versions = as_data(engine, experiment), dict(versions())
    return history


def carry_out(engine: Engine, experiment: Experiment, history: History, report: Reporter, control: Control) -> None:
    """Carry out the experiment; `report` puts what is new into the history, which gets what there is at the end."""
    if why := experiment.found.unstacked:
        report(Event(1, 0.0, "note", {"text": f"peers are computed one by one, and not stacked, as {why}"}))
    try:
        outcome = engine.run(experiment, report, control)
        history.models, history.timeline, history.staleness = outcome.models, outcome.timeline, outcome.staleness
        history.best, history.memory = outcome.best, outcome.memory
        history.stopped = not experiment.ended(history.rows)
        if outcome.error is not None:
            raise outcome.error
    except Exception as error:
        if engine.name != "lockstep":  # whose frames are for debuggers to look into
            let_go(error)
        raise


def _samples_per_round(experiment: Experiment) -> float:
    """Training examples that all peers together go through in a round, on average."""
    if experiment.epochs is not None:
        return experiment.epochs * sum(map(experiment.examples, range(experiment.peers))) / experiment.rounds
    return experiment.steps_per_round * experiment.peers * experiment.batch_size


_WINDOW = 5.0  # seconds that "now" means, or the last two notes where those lie further apart
_GRAIN = 0.05  # seconds between two notes that are kept: rows come several at a time


class Throughput:
    """Rounds a second, from the moments at which rows came in."""

    def __init__(self) -> None:
        self._notes: deque[tuple[float, int]] = deque()  # when, and how many rounds were finished

    def note(self, rounds: int) -> None:
        """So many rounds are finished now."""
        now = monotonic()
        if len(self._notes) > 1 and now - self._notes[-2][0] < _GRAIN:
            self._notes.pop()
        self._notes.append((now, rounds))
        while len(self._notes) > 2 and now - self._notes[0][0] > _WINDOW:
            self._notes.popleft()

    def forget(self) -> None:
        """Count anew, as after a pause."""
        self._notes.clear()

    @property
    def rate(self) -> float | None:
        """Rounds a second; None where nobody can say yet."""
        notes = list(self._notes)
        if len(notes) < 2 or notes[-1][0] <= notes[0][0] or notes[-1][1] <= notes[0][1]:
            return None
        return (notes[-1][1] - notes[0][1]) / (notes[-1][0] - notes[0][0])
