"""compare: several algorithms on the same data, seed and budget; accuracy against bytes against seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from typing import Any

import torch

from labkit.algorithms import Algorithm
from labkit.checks import whole
from labkit.costs.pareto import pareto
from labkit.data import Dataset
from labkit.engines.clock import Timed, seconds_per_step
from labkit.engines.control import Wish
from labkit.engines.experiment import Engine, Experiment
from labkit.errors import LabkitError, SettingError
from labkit.history.history import History
from labkit.history.rows import Interval, Update
from labkit.plots.frontier import Trail, draw
from labkit.plots.panel import Picture
from labkit.text import Table, amount, duration, percent, some
from labkit.training.live import Background
from labkit.training.plan import evaluated, plan
from labkit.training.run import blank, carry_out
from labkit.training.settings import Model, Settings

_OWN = ("algorithm", "model", "optimizer", "loss", "public", "shards", "on")  # what an entry may set for itself
_ENDS = {"rounds", "epochs"}  # what says when a run of `labkit.train` ends


def compare(
    algorithms: Mapping[str, Algorithm | Sequence[Algorithm] | Mapping[str, Any]],
    model: Model | Sequence[Model],
    dataset: Dataset,
    *,
    steps: int = 200,
    **settings: Any,
) -> Comparison:
    """Train by each of the named algorithms in turn, with the same data, seed and budget; returns at once.

    The budget is `steps` gradient steps per peer: an algorithm that takes `every` of them in a round has steps / every
    rounds, rounded down, but at least one; where only a share of the peers takes part, as many more rounds as it takes
    until a peer has taken so many steps on average. `settings` are those of `labkit.train`. A value of `algorithms`
    may also be a dict with an "algorithm" and what else is different for it: "model", "optimizer", "loss", "public",
    "shards" or "on".

    Raises SettingError, ModelError, DataError or LabClosed, naming the entry, before anything runs.

    >>> import labkit as lk, torch
    >>> some = {"every step": lk.algorithms.AllReduce(), "every 8 steps": lk.algorithms.LocalSGD(8)}
    >>> done = lk.compare(some, lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), steps=80).result()
    >>> done.histories["every step"].bytes / done.histories["every 8 steps"].bytes
    8.0
    """
    whole(steps, "steps")
    if ends := _ENDS.intersection(settings):
        raise SettingError(f"A comparison ends after steps={steps} of each peer: leave {', '.join(sorted(ends))} away.")
    if not isinstance(algorithms, Mapping) or not algorithms:
        raise SettingError(
            'There is nothing to compare: give algorithms by name, such as {"DDP": lk.algorithms.AllReduce()}.'
        )
    common = {"model": model, "dataset": dataset, **settings}
    entries = {name: _entry(name, given, common, steps) for name, given in algorithms.items()}
    peers = {name: entry.experiment.peers for name, entry in entries.items()}
    if len(set(peers.values())) > 1:
        listed = ", ".join(f"{name!r} {count}" for name, count in peers.items())
        raise SettingError(f"The entries have different numbers of peers ({listed}): give peers=… for all of them.")
    return Comparison(entries, steps)


compare.__signature__ = Settings.signature(  # type: ignore[attr-defined]  # what Shift+Tab shows
    compare, without=("model", "dataset", "algorithm", *_ENDS)
)


@dataclass(frozen=True)
class Entry:
    """One algorithm's training, planned; and what decides how long one of its steps takes."""

    engine: Engine
    experiment: Experiment
    work: tuple[int, ...]

    @property
    def steps(self) -> float:
        """Gradient steps that a peer takes in all, on average."""
        return self.experiment.rounds * self.experiment.steps_per_round


def _entry(name: str, given: Any, common: Mapping[str, Any], steps: int) -> Entry:
    """One entry with as many rounds as the budget pays for."""
    own = dict(given) if isinstance(given, Mapping) else {"algorithm": given}
    if unknown := set(own) - set(_OWN):
        raise SettingError(
            f"{name!r} sets {', '.join(sorted(unknown))} for itself: an entry may have {', '.join(_OWN)}, and all "
            "else is the same for everyone."
        )
    if "algorithm" not in own:
        raise SettingError(f'{name!r} has no algorithm: give {{"algorithm": lk.algorithms.AllReduce(), …}}.')
    both = {**common, **own}
    work = tuple(id(both.get(part)) for part in ("model", "optimizer", "loss"))
    try:
        engine, experiment = plan(Settings(**both, rounds=1))
    except LabkitError as error:
        raise named(error, name) from error
    rounds = max(1, int(steps / experiment.steps_per_round + 1e-9))
    seldom = common.get("evaluate_every") or evaluated(rounds)
    return Entry(engine, replace(experiment, rounds=rounds, evaluate_every=seldom), work)


class Comparison(Background):
    """Several trainings, one after the other: `.result()` to wait, `.stop()`, `.plot()`, `.frontier()`, `.histories`.

    As the last line of a cell it draws itself and keeps the picture live. `histories` has each algorithm's History by
    name, as far as it has come; `errors` what made one fail, the others go on. `steps` is the budget: gradient steps
    of each peer.
    """

    def __init__(self, entries: Mapping[str, Entry], steps: int) -> None:
        self.steps = steps
        self.histories: dict[str, History] = {name: blank(it.engine, it.experiment) for name, it in entries.items()}
        super().__init__(self.histories.values(), sum(it.experiment.rounds for it in entries.values()))
        self.errors: dict[str, BaseException] = {}
        self._entries = dict(entries)
        self._now = next(iter(entries))
        self._step_seconds: dict[tuple[Any, ...], float] = {}
        self._start()

    def result(self, timeout: float | None = None) -> Comparison:
        """Wait for the end and return the comparison itself, or raise TimeoutError after `timeout` s.

        Raises what made an entry fail, once the others are through; their histories are kept. An interrupt stops it.
        """
        self._wait(timeout)
        return self

    def frontier(self, against: str = "bytes") -> tuple[str, ...]:
        """The names on the Pareto frontier of test accuracy against "bytes" per peer or "seconds", the cheapest first.

        An entry is on it unless another one is at least as accurate at no higher cost, and better in one of the two;
        entries that no test has measured yet are not. Raises SettingError for another cost.

        >>> import labkit as lk, torch
        >>> both = {"every step": lk.algorithms.AllReduce(), "never": lk.algorithms.Independent()}
        >>> done = lk.compare(both, lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), steps=4).result()
        >>> done.frontier("bytes")[0]  # nothing is cheaper than to send nothing
        'never'
        """
        if against not in ("bytes", "seconds"):
            raise SettingError(f'against={against!r} is no cost here: give "bytes" or "seconds".')
        ends = {name: it.final for name, it in self.histories.items() if it.rows}
        gains = [nan if row.accuracy is None else row.accuracy for row in ends.values()]
        best = pareto([getattr(row, against) for row in ends.values()], gains)
        return tuple(list(ends)[k] for k in best)

    def plot(self) -> Picture:
        """Accuracy against bytes per peer and against seconds: each algorithm's curve and end, and the frontiers."""
        histories = self.histories
        trails = [_trail(name, history) for name, history in histories.items()]
        return draw(
            trails,
            best=(_best(trails, "bytes"), _best(trails, "seconds")),
            title=self._title,
            bytes_are=" or ".join(dict.fromkeys(map(_ledger, histories.values()))),
            seconds_are=" or ".join(dict.fromkeys(map(_clock, histories.values()))),
        )

    # -- as any work in the background

    def _work(self) -> None:
        for name, entry in self._entries.items():
            self._now = name
            if self._control.wish is Wish.STOP:
                return
            try:
                engine = self._on_one_clock(entry)
                carry_out(engine, entry.experiment, self.histories[name], partial(self._heard, name), self._control)
            except Exception as error:  # noqa: BLE001  kept for result(); the others are worth having
                self.errors[name] = named(error, name)
        if self.errors:
            raise next(iter(self.errors.values()))

    def _heard(self, name: str, update: Update) -> None:
        self.histories[name].take(update)
        if not isinstance(update, Interval):
            self._notify()

    def _on_one_clock(self, entry: Entry) -> Engine:
        """The entry's engine; a virtual clock that measures a step does so once, for all whose steps are the same."""
        engine = entry.engine
        if not isinstance(engine, Timed) or engine.clock == "wall" or engine.step_seconds is not None:
            return engine
        device = torch.device(getattr(engine, "device", "cpu"))
        key = (*entry.work, device)
        if key not in self._step_seconds:
            self._step_seconds[key] = seconds_per_step(entry.experiment, device)
        return replace(engine, step_seconds=self._step_seconds[key])

    @property
    def status(self) -> str:
        if self.state == "failed":
            return f"failed: {self.error}"
        if self.done:
            return self.state
        names, name = list(self._entries), self._now
        rows, rounds = self.histories[name].rows, self._entries[name].experiment.rounds
        return f"{self.state} · {name} ({names.index(name) + 1} of {len(names)}) · round {len(rows)} of {rounds}"

    @property
    def still(self) -> str:
        return repr(self) if self.done else f"Comparison of {self._title}: {', '.join(self._entries)}"

    def picture(self) -> Picture:
        return self.plot()

    @property
    def _title(self) -> str:
        experiment, count = next(iter(self._entries.values())).experiment, len(self._entries)
        algorithms = some(count, "algorithm")
        return f"{algorithms} on {experiment.dataset.name}, {experiment.peers} peers, {self.steps} steps each"

    def __repr__(self) -> str:
        lines = [f"Comparison of {self._title}, {self.state}", _table(self._entries, self.histories, self.frontier())]
        for name, entry in self._entries.items():
            if abs(entry.steps - self.steps) > 1e-9:
                per = entry.experiment.steps_per_round
                rounds = f"{some(entry.experiment.rounds, 'round')} of {per:g}"
                lines.append(f"{name}: {self.steps} steps are not whole rounds, {rounds} make {entry.steps:g}")
        return "\n".join([*lines, *(f"{name} failed: {error}" for name, error in self.errors.items())])


def named(error: BaseException, name: str) -> BaseException:
    """The error with the entry's name: before the sentence of labkit's own, as a note on any other."""
    if isinstance(error, LabkitError):
        wrapped = type(error)(f"{name!r}: {error}")
        wrapped.__cause__ = error
        return wrapped
    error.add_note(f"This is of the entry {name!r} of a comparison.")
    return error


def _trail(name: str, history: History) -> Trail:
    tested = [(row.accuracy, row.bytes, row.seconds) for row in history.rows if row.accuracy is not None]
    accuracy, sent, seconds = zip(*tested, strict=True) if tested else ((), (), ())
    return Trail(name, accuracy, sent, seconds)


def _best(trails: Sequence[Trail], against: str) -> list[str]:
    """The names of those on the Pareto frontier of accuracy against "bytes" or "seconds", as far as they have come."""
    known = [it for it in trails if it.accuracy]
    best = pareto([getattr(it, against)[-1] for it in known], [it.accuracy[-1] for it in known])
    return [known[k].name for k in best]


def _ledger(history: History) -> str:
    return "by formula" if history.ledger == "formula" else "measured"


def _clock(history: History) -> str:
    if history.clock == "virtual":
        return "virtual clock"
    return "measured" if history.engine == "cluster" else "measured, on one machine"


def _table(entries: Mapping[str, Entry], histories: Mapping[str, History], best: Sequence[str]) -> str:
    """A line for each algorithm; seconds only where they are virtual: measured ones differ each time."""
    virtual = any(history.clock == "virtual" for history in histories.values())
    head = ["", "rounds", "accuracy", "sent per peer", *["time"] * virtual, "frontier"]
    rows = []
    for name, history in histories.items():
        figures = ["–", "–", *["–"] * virtual]
        if history.rows:
            time = duration(history.seconds) if history.clock == "virtual" else "–"
            figures = [percent(history.final.accuracy), amount(history.bytes), *[time] * virtual]
        rows.append([name, str(entries[name].experiment.rounds), *figures, "●" if name in best else ""])
    return repr(Table(head, rows, left=1))
