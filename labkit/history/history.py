"""History: what a training run measured, round by round, and the models it made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from typing import Any

from labkit.errors import SettingError, Stopped
from labkit.history import files
from labkit.history.measures import in_words, mean_of, measures_of, spread_in_words, values_of
from labkit.history.noise import NOISE, SIGNAL, NoiseScale
from labkit.history.rows import Event as Event, Row as Row, Update
from labkit.history.tensorboard import TensorBoardWriter
from labkit.plots.curves import learning_curves
from labkit.plots.panel import Picture
from labkit.text import Table, amount
from labkit.translation.translate import tr

_ALWAYS = ("losses", "accuracies", "test_losses")  # curves that a history may be asked for, measured or not


@dataclass
class History:
    """The rows of a run as they came in, and at its end the trained models: one per peer, or the server's only one.

    `best` are the models of the round in which each of them scored best on the tests, with `keep="best"`.
    `timeline` is a Timeline of the peers' work between messages where one was kept: predicted by the virtual clock, or
    measured on real workers.
    `staleness` [n, rounds], of asynchronous peers, is how many of the server's updates each push had not seen, or how
    often others had changed a peer's own parameters since its round began.
    `memory`, with `memory=True`, is a MemoryLedger: parameters, gradients, optimiser state, activations and buffers of
    each peer, predicted and measured, with `.table()` and `.plot()`.
    `clock` says whose seconds these are ("wall", measured; or "virtual", computed from link and speeds), `ledger`
    whether the bytes were counted on the wire ("measured": peers of one worker reach each other without it) or by the
    messages' formula ("formula"), as those of a server's clients are on every engine.
    `events` are what happened to it on the way: the learning rate was changed, a worker was lost.
    `settings` are what the run was asked to do, as plain data from which it can be done again with the same models and
    data, and `versions` those of what computed.

    >>> import labkit as lk, torch
    >>> history = lk.train(lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), peers=2, rounds=10).result()
    >>> history.final.round, len(history.models), history.engine
    (10, 2, 'stacked')
    """

    algorithm: str
    engine: str
    peers: int
    clock: str = "wall"
    ledger: str = "formula"
    rows: list[Row] = field(default_factory=list)
    models: Sequence[Any] = field(default_factory=list, repr=False)
    timeline: Any = field(default=None, repr=False)
    staleness: Any = field(default=None, repr=False)
    best: Sequence[Any] = field(default_factory=list, repr=False)
    memory: Any = field(default=None, repr=False)
    stopped: bool = False
    events: list[Event] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    versions: dict[str, str] = field(default_factory=dict, repr=False)

    def take(self, update: Update) -> None:
        """Keep a row or an event; of rounds that are done again, the new rows replace the old ones."""
        if isinstance(update, Event):
            self.events.append(update)
        elif isinstance(update, Row):
            while self.rows and self.rows[-1].round >= update.round:
                self.rows.pop()
            self.rows.append(update)

    @property
    def final(self) -> Row:
        """The last round that was evaluated, or the last of all when none was; Stopped before there is any."""
        if not self.rows:
            raise Stopped("No round is finished, so there is no final one: wait for the run, or let it go on longer.")
        evaluated = [row for row in self.rows if row.evaluated]
        return (evaluated or self.rows)[-1]

    @property
    def bytes(self) -> float:
        """Bytes that one peer sent in the whole run."""
        return self.rows[-1].bytes if self.rows else 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training, on the run's clock, without evaluations, pauses, and idle time in `step_through`."""
        return self.rows[-1].seconds if self.rows else 0.0

    @property
    def noise_scale(self) -> NoiseScale:
        """How large a batch, and so how many workers, are useful, by the last 50 rounds or so of this run.

        Raises SettingError for one that has not compared gradients, as Measured(AllReduce()) does.
        """
        return NoiseScale.smoothed(self.curve(NOISE)[1], self.curve(SIGNAL)[1])

    def curve(self, what: str) -> tuple[list[int], list[tuple[float, ...]]]:
        """Rounds, and in them each peer's "losses", "accuracies", "test_losses", a metric, or what it logged by a name.

        Where others take part in every round, it is their mean alone. Raises SettingError for a name that no row has.

        >>> import labkit as lk, torch
        >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
        >>> run = lk.train(model, digits, lk.algorithms.AllReduce(), peers=2, rounds=3)
        >>> rounds, accuracies = run.result().curve("accuracies")
        >>> rounds
        [1, 2, 3]
        """
        names = {*_ALWAYS, *(name for row in self.rows for name in (*row.metrics, *row.logged))}
        if what not in names | {NOISE, SIGNAL}:
            raise SettingError(f"The history has no curve {what!r}: it has {', '.join(sorted(names))}.")
        known = [
            (row.round, getattr(row, what, None) or row.metrics.get(what) or row.logged.get(what)) for row in self.rows
        ]
        if any(row.peers is not None for row in self.rows):
            known = [(at, values and (fmean([it for it in values if not isnan(it)] or [nan]),)) for at, values in known]
        return [at for at, values in known if values is not None], [v for _, v in known if v is not None]

    def table(self) -> Table:
        """The rounds that were evaluated (all where none was): loss, accuracy, metrics, bytes, seconds, learning rate.

        Where there are no classes there is the test loss instead of an accuracy; of clients' own test examples there
        are mean, standard deviation and the worst client.
        """
        rows = [row for row in self.rows if row.evaluated] or self.rows
        changes = len({row.learning_rate for row in self.rows}) > 1
        tested = measures_of(rows) or ["accuracy"]
        head = ["round", "loss", *tested, "sent per peer", "seconds", *["learning rate"] * changes]
        return Table([tr(it) for it in head], [_words(row, tested)[: len(head)] for row in rows])

    def to_csv(self, path: str | Path) -> None:
        """Write a line for each round: the means, then each peer's loss and accuracy; empty where not measured.

        The file appears whole, or not at all.
        """
        files.write_csv(path, self.rows, self.peers)

    def to_json(self, path: str | Path) -> None:
        """Write everything but models, timeline and memory, for `from_json`; the models are saved by `torch.save`.

        The file appears whole, or not at all.
        """
        files.write_json(path, vars(self))

    @classmethod
    def from_json(cls, path: str | Path) -> History:
        """The history that `to_json` wrote, without models and timeline; DataError where there is none."""
        return cls(**files.read_json(path))

    def to_tensorboard(self, folder: str | Path) -> None:
        """Write the rows and events to `folder` as TensorBoard reads them; `Run.tensorboard` follows a run.

        Raises MissingPackage where tensorboard is not installed.
        """
        tensorboard_writer(folder, self).close()

    def plot(self) -> Picture:
        """Training loss, test accuracy (or test loss), metrics and what peers logged over the rounds, and the means."""
        return self.picture(title=f"{self.algorithm}, {self.peers} peers, {self.engine} engine")

    def picture(self, rounds: int | None = None, title: str = "", whole: bool = False) -> Picture:
        """The learning curves so far, on an axis of `rounds` rounds (all of them if it is `whole`)."""
        names = {"accuracy": "accuracies", "test loss": "test_losses"}
        tests = {it: self.curve(names.get(it, it)) for it in measures_of(self.rows) or ["accuracy"]}
        logged = dict.fromkeys(name for row in self.rows for name in row.logged)
        tests |= {name: self.curve(name) for name in logged if name not in tests}
        return learning_curves(self.curve("losses"), tests, rounds=rounds, title=title, note="measured", whole=whole)

    def __repr__(self) -> str:
        if not self.rows:
            return f"History: {self.algorithm}, {self.peers} peers, no round finished yet"
        final = self.final
        reached = _tested(final) or "not evaluated"
        reached += f" at round {final.round}" if final.evaluated and final.round < self.rows[-1].round else ""
        ended = "stopped after" if self.stopped else "after"
        return (
            f"History: {self.algorithm}, {self.peers} peers, {ended} {len(self.rows)} rounds {reached}, "
            f"{self.bytes / 1e6:.2f} MB sent per peer"
        )


def _tested(row: Row) -> str:
    """What tests told first of all, in words."""
    measure = next(iter(measures_of([row])), "")
    return f"test {measure.removeprefix('test ')} {in_words(measure, mean_of(row, measure))}" if measure else ""


def _words(row: Row, tested: list[str]) -> list[str]:
    rate = "–" if row.learning_rate is None else f"{row.learning_rate:.4g}"
    scores = [spread_in_words(it, values_of(row, it)) for it in tested]
    return [str(row.round), f"{row.loss:.4f}", *scores, amount(row.bytes), f"{row.seconds:.3f}", rate]


def tensorboard_writer(folder: str | Path, history: History) -> TensorBoardWriter:
    """A writer that has written what the history knows, and takes what comes; close it."""
    settings = history.settings | {"versions": history.versions}
    return TensorBoardWriter(folder, settings, [*history.rows, *history.events], history.seconds)
