"""Comparison: several trainings under one budget, one after the other; their table, their files and their frontier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from pathlib import Path
from statistics import fmean, stdev
from time import monotonic
from typing import Any

import torch

from labkit.costs.pareto import pareto
from labkit.engines.budget import Budget
from labkit.engines.clock import Timed, seconds_per_step
from labkit.engines.control import Control, Wish
from labkit.engines.experiment import Engine, Experiment
from labkit.errors import LabkitError, SettingError
from labkit.history.files import write_all_csv, write_all_json
from labkit.history.history import History
from labkit.history.measures import (
    CLIENTS,
    HIGHER,
    LOWER,
    in_words,
    lower_is_better,
    mean_of,
    measures_of,
    spread_in_words,
    values_of,
    worst,
)
from labkit.history.rows import Interval, Row, Update
from labkit.plots.frontier import Quality, Trail, draw
from labkit.plots.panel import Picture
from labkit.text import Table, amount, duration, remaining, some
from labkit.training.live import Background
from labkit.training.run import blank, carry_out
from labkit.translation.translate import tr

_PARTS = 1_000_000  # of each training, in which its progress is counted


@dataclass(frozen=True)
class Entry:
    """One training, planned; and what decides how long one of its steps takes."""

    engine: Engine
    experiment: Experiment
    work: tuple[int, ...]

    def share(self, history: History) -> float:
        """How much of it is done."""
        if not history.rows:
            return 0.0
        last, budget = history.rows[-1], self.experiment.budget
        spent = 0.0 if budget is None else budget.share(last.steps, last.bytes, last.seconds)
        return min(1.0, max(spent, last.round / self.experiment.rounds))


class Comparison(Background):
    """Several trainings, one after the other: `.result()` to wait, `.stop()`, `.resume()`, `.plot()`, `.frontier()`.

    As the last line of a cell it draws itself and keeps the picture live. `histories` has each entry's History by
    name, as far as it has come, of the first seed; `repeats` those of all seeds; `errors` what made an entry fail, the
    others go on. `budget` is what each training may spend.
    """

    things = "algorithm"  # what is compared

    def __init__(self, entries: Mapping[str, Sequence[Entry]], budget: Budget) -> None:
        self.budget = budget
        self.repeats: dict[str, list[History]] = {
            name: [blank(it.engine, it.experiment) for it in each] for name, each in entries.items()
        }
        self.histories = {name: each[0] for name, each in self.repeats.items()}
        self.errors: dict[str, BaseException] = {}
        self._entries = {name: list(each) for name, each in entries.items()}
        self._now = next(iter(entries)), 0
        self._step_seconds: dict[tuple[Any, ...], float] = {}
        super().__init__(_PARTS * sum(map(len, self._entries.values())))
        self._start()

    def result(self, timeout: float | None = None) -> Comparison:
        """Wait for the end and return the comparison itself, or raise TimeoutError after `timeout` s.

        Raises what made an entry fail, once the others are through; their histories are kept. An interrupt stops it,
        and `resume()` goes on.
        """
        self._wait(timeout)
        return self

    def resume(self) -> None:
        """Go on after a pause; or, where it was stopped, interrupted or failed, with what is not done.

        What is done is kept; a training that was under way, or failed, is done again from its beginning.
        """
        if not self.done and self._control.wish is not Wish.STOP:
            super().resume()
            return
        self._ended.wait()
        if self._left():
            self.errors.clear()
            self._control, self._error = Control(), None
            self._ended.clear()
            self._start()

    def frontier(self, against: str = "bytes", of: str | None = None, better: str | None = None) -> tuple[str, ...]:
        """The names on the Pareto frontier of a measure against "bytes" per peer or "seconds", the cheapest first.

        The measure is "accuracy", or "test loss" where there are no classes, unless `of` names it, a metric or "test
        loss"; of the user's own metrics `better` says whether "higher" or "lower" is better. An entry is on it unless
        another one is at least as good at no higher cost, and better in one of the two; of several seeds it is their
        means that count. Entries that no test has measured yet are not on it. Raises SettingError for another cost, a
        measure that nobody has, or one of which nothing says what is better.

        >>> import labkit as lk, torch
        >>> both = {"every step": lk.algorithms.AllReduce(), "never": lk.algorithms.Independent()}
        >>> done = lk.compare(both, lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), steps=4).result()
        >>> done.frontier("bytes")[0]  # nothing is cheaper than to send nothing
        'never'
        """
        if against not in ("bytes", "seconds"):
            raise SettingError(f'against={against!r} is no cost here: give "bytes" or "seconds".')
        quality = self._quality(of, better)
        ends = {name: rows for name, rows in self._ends().items() if rows and name not in self.errors}
        scores = [[mean_of(row, quality.name) for row in rows] for rows in ends.values()]
        means = [fmean(nan if score is None else score for score in each) for each in scores]
        gains = [-mean if quality.lower else mean for mean in means]
        best = pareto([fmean(getattr(row, against) for row in rows) for rows in ends.values()], gains)
        return tuple(list(ends)[k] for k in best)

    def plot(self, of: str | None = None, better: str | None = None) -> Picture:
        """A measure against bytes per peer and against seconds: each entry's curve and end, and the frontiers.

        `of` and `better` are as in `frontier`. With several seeds the curves are their means, in bands of a standard
        deviation to either side.
        """
        histories, quality = self.histories.values(), self._quality(of, better)
        trails = [_trail(name, each, quality.name) for name, each in self.repeats.items()]
        sound = [it for it in trails if it.name not in self.errors]
        return draw(
            trails,
            quality=quality,
            best=(_best(sound, "bytes", quality.lower), _best(sound, "seconds", quality.lower)),
            title=self._title,
            bytes_are=" or ".join(dict.fromkeys(map(_ledger, histories))),
            seconds_are=" or ".join(dict.fromkeys(map(_clock, histories))),
            band_is=self._spread,
        )

    def table(self) -> Table:
        """A line for each entry: rounds and steps that it took, measures, bytes, virtual seconds, who is unbeaten.

        Seconds only where they are virtual: measured ones differ each time. Of clients' own tests there is the worst.
        """
        virtual, best = any(history.clock == "virtual" for history in self.histories.values()), self.frontier()
        tested = self._measures()
        head = ["", "rounds", "steps", *tested, "sent per peer", *["time"] * virtual, "frontier"]
        lines = []
        for name, rows in self._ends().items():
            figures = ["–"] * (3 + len(tested) + virtual)
            if rows:
                last = [history.rows[-1] for history in self.repeats[name] if history.rows]
                figures = [
                    _over([row.round for row in last], "{:,.4g}".format),
                    _over([row.steps for row in last], "{:,.4g}".format),
                    *(_measured(rows, measure) for measure in tested),
                    _over([row.bytes for row in last], amount),
                    *[_over([row.seconds for row in last], duration)] * virtual,
                ]
            lines.append([name, *figures, "●" if name in best else ""])
        return Table([tr(it) for it in head], lines, left=1)

    def to_csv(self, path: str | Path) -> None:
        """Write a line for each round of each training: entry, seed, the means of its row. The file appears whole."""
        write_all_csv(path, self.repeats)

    def to_json(self, path: str | Path) -> None:
        """Write each training's history as `History.to_json` does, by the entry's name; the file appears whole."""
        budget = {name: value for name, value in vars(self.budget).items() if value not in (None, False)}
        write_all_json(path, {"budget": budget, "title": self._title}, self.repeats)

    # -- as any work in the background

    def _left(self) -> list[tuple[str, int]]:
        """The trainings, by name and number of the seed, that have not come to their end."""
        return [
            (name, k)
            for name, each in self._entries.items()
            for k, it in enumerate(each)
            if not it.experiment.ended(self.repeats[name][k].rows) or name in self.errors
        ]

    def _work(self) -> None:
        left = self._left()
        for name, k in left:
            self.repeats[name][k] = blank(self._entries[name][k].engine, self._entries[name][k].experiment)
            self.histories[name] = self.repeats[name][0]
        self._since, self._before = monotonic(), self.progress
        self._train(left)
        if self.errors:
            error = next(iter(self.errors.values()))
            if len(self.errors) < len(self.histories):
                error.add_note("The other entries are done: their histories are in .histories, and .table() has them.")
            raise error

    def _train(self, left: Sequence[tuple[str, int]]) -> None:
        """Do these trainings, one after the other; what makes one fail is kept, for the others are worth having."""
        for name, k in left:
            self._now = name, k
            if self._control.wish is Wish.STOP:
                return
            entry, history = self._entries[name][k], self.repeats[name][k]
            try:
                engine = self._on_one_clock(entry)
                carry_out(engine, entry.experiment, history, partial(self._heard, history), self._control)
            except Exception as error:  # noqa: BLE001
                self.errors.setdefault(name, named(error, name))

    def _heard(self, history: History, update: Update) -> None:
        history.take(update)
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
    def progress(self) -> int:
        """How much is done, in millionths of a training."""
        shares = [it.share(self.repeats[name][k]) for name, each in self._entries.items() for k, it in enumerate(each)]
        return int(_PARTS * sum(shares))

    @property
    def stopped(self) -> bool:
        """Whether it ended before it was through, as by `stop()`."""
        return self.done and bool(self._left())

    @property
    def status(self) -> str:
        if self.state == "failed":
            return f"failed: {self.error}"
        if self.done:
            return self.state
        (name, k), names = self._now, list(self._entries)
        seed = f", seed {k + 1} of {len(self._entries[name])}" if len(self._entries[name]) > 1 else ""
        rows = self.repeats[name][k].rows
        steps = f" · {rows[-1].steps:.4g} steps in {some(len(rows), 'round')}" if rows else ""
        return f"{self.state} · {name} ({names.index(name) + 1} of {len(names)}{seed}){steps}{self._time_left()}"

    def _time_left(self) -> str:
        gained = self.progress - getattr(self, "_before", 0)
        if self.state != "running" or gained <= 0:
            return ""
        return f" · {remaining((monotonic() - self._since) * (self.total - self.progress) / gained)}"

    @property
    def still(self) -> str:
        return repr(self) if self.done else f"Comparison of {self._title}: {', '.join(self._entries)}"

    def picture(self) -> Picture:
        return self.plot()

    def _measures(self) -> list[str]:
        """What tests told of the entries' models."""
        return measures_of([row for each in self.repeats.values() for it in each for row in it.rows]) or ["accuracy"]

    def _quality(self, of: str | None, better: str | None) -> Quality:
        """The measure that entries are compared by."""
        known = list(dict.fromkeys([*self._measures(), "test loss"]))
        if of is not None and of not in known:
            raise SettingError(f"of={of!r} was not measured: choose one of {', '.join(known)}.")
        name = of or next(it for it in known if it in (*LOWER, *HIGHER))
        return Quality(name, lower_is_better(name, better))

    def _ends(self) -> dict[str, list[Row]]:
        """Of each entry the last tested rows, one for each seed that has got so far."""
        return {name: [it.final for it in each if it.rows] for name, each in self.repeats.items()}

    @property
    def _title(self) -> str:
        experiment, count = next(iter(self._entries.values()))[0].experiment, len(self._entries)
        budget = self.budget
        most = [
            *([f"{budget.steps} steps"] if budget.bytes is None and budget.seconds is None else []),
            *([f"{amount(budget.bytes)} per peer"] if budget.bytes is not None else []),
            *([duration(budget.seconds)] if budget.seconds is not None else []),
        ]
        peers = sorted({it.experiment.peers for each in self._entries.values() for it in each})
        many = f"{experiment.peers}" if len(peers) == 1 else f"{peers[0]} to {peers[-1]}"
        things = some(count, self.things)
        return f"{things} on {experiment.dataset.name}, {many} peers, {' or '.join(most)} each"

    @property
    def _spread(self) -> str:
        """What ± and bands mean; nothing where there is one seed."""
        seeds = max(map(len, self._entries.values()))
        return f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""

    def __repr__(self) -> str:
        lines = [
            f"Comparison of {self._title}, {self.state}",
            repr(self.table()),
            *([self._spread] if self._spread else []),
        ]
        for name, each in self.repeats.items():
            if (row := next((it.rows[-1] for it in each if it.rows), None)) is None:
                continue
            if self._short(name, row):
                lines.append(
                    f"{name}: ended after {some(row.round, 'round')}, though they took {row.steps:.4g} steps only"
                )
            elif self._bounded(row):
                lines.append(
                    f"{name}: ended after {row.steps:,.0f} steps, the bound where no steps=… is given, before its "
                    "budget was spent"
                )
        return "\n".join([*lines, *(f"{name} failed: {error}" for name, error in self.errors.items())])

    def _short(self, name: str, row: Row) -> bool:
        """Whether a training came to its last round before its budget was spent."""
        return row.round >= self._entries[name][0].experiment.rounds and (
            self.budget.share(row.steps, row.bytes, row.seconds) < 1
        )

    def _bounded(self, row: Row) -> bool:
        """Whether a training came to the bound of its steps, which nobody asked for, before it spent what was given."""
        given = replace(self.budget, steps=None)
        return (
            self.budget.bounded
            and row.steps >= (self.budget.steps or 0)
            and (given.share(row.steps, row.bytes, row.seconds) < 1)
        )


def named(error: BaseException, name: str) -> BaseException:
    """The error with the entry's name: before the sentence of labkit's own, as a note on any other."""
    if isinstance(error, LabkitError):
        wrapped = type(error)(f"{name!r}: {error}")
        wrapped.__cause__ = error
        return wrapped
    error.add_note(f"This is of the entry {name!r} of a comparison.")
    return error


def _over(values: Sequence[Any], words: Callable[[float], str]) -> str:
    """One value in words; of several seeds the mean and, where they differ, the standard deviation."""
    known = [it for it in values if it is not None]
    if not known:
        return "–"
    spread = stdev(known) if len(known) > 1 else 0.0
    return words(fmean(known)) + (f" ± {words(spread)}" if spread > 0 else "")


def _measured(rows: Sequence[Row], measure: str) -> str:
    """A measure at the end in words: of one seed's clients with their spread, and of clients always with the worst."""
    if len(rows) == 1:
        return spread_in_words(measure, values_of(rows[0], measure))
    words = _over([mean_of(row, measure) for row in rows], partial(in_words, measure))
    each = [values for row in rows if (values := values_of(row, measure))]
    if measure not in CLIENTS or not each:
        return words
    return f"{words}, worst {_over([worst(measure, values) for values in each], partial(in_words, measure))}"


def _trail(name: str, histories: Sequence[History], measure: str) -> Trail:
    """The way of an entry, test by test: the mean over its seeds, as far as all that have begun have come."""
    each = [
        [(score, row.bytes, row.seconds) for row in history.rows if (score := mean_of(row, measure)) is not None]
        for history in histories
        if history.rows
    ]
    tests = list(zip(*each, strict=False))  # [E][seeds] of what was measured
    means = [tuple(map(fmean, zip(*seeds, strict=True))) for seeds in tests]
    scores, sent, seconds = zip(*means, strict=True) if means else ((), (), ())
    spread = [stdev(it[0] for it in seeds) for seeds in tests] if len(each) > 1 else ()
    return Trail(name, scores, sent, seconds, spread)


def _best(trails: Sequence[Trail], against: str, lower: bool) -> list[str]:
    """The names of those on the Pareto frontier of scores against "bytes" or "seconds", as far as they have come."""
    known = [it for it in trails if it.scores]
    gains = [-it.scores[-1] if lower else it.scores[-1] for it in known]
    best = pareto([getattr(it, against)[-1] for it in known], gains)
    return [known[k].name for k in best]


def _ledger(history: History) -> str:
    return "by formula" if history.ledger == "formula" else "measured"


def _clock(history: History) -> str:
    if history.clock == "virtual":
        return "virtual clock"
    return "measured" if history.engine == "cluster" else "measured, on one machine"
