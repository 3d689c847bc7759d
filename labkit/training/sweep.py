"""sweep: a grid of settings, each combination trained under one budget, side by side on a lab's workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import product
from typing import Any

from labkit.cluster.job import Job
from labkit.cluster.lab import Lab
from labkit.data import Dataset
from labkit.engines.budget import Budget
from labkit.engines.cluster import Cluster
from labkit.engines.control import Control, Wish
from labkit.errors import SettingError, Stopped
from labkit.history.history import History
from labkit.text import name_all
from labkit.training.compare import ENDS, budget_of, planned, seeds_of
from labkit.training.comparison import Comparison, Entry, named
from labkit.training.plan import plan
from labkit.training.run import blank, carry_out
from labkit.training.settings import Model, Settings, called

_NEVER = {*ENDS, "on"}  # what a grid cannot vary
_Own = dict[str, Any]  # the settings of one combination


def sweep(
    grid: Mapping[str, Sequence[Any] | Mapping[str, Any]],
    model: Model | Sequence[Model],
    dataset: Dataset,
    *,
    steps: int | None = None,
    bytes: float | None = None,
    seconds: float | None = None,
    seeds: int | Sequence[int] = 1,
    seed: int = 0,
    lab: Lab | None = None,
    **settings: Any,
) -> Comparison:
    """Train with every combination of the settings in `grid`, in simulators; returns at once.

    `grid` has settings of `labkit.train` by name, each with a list of values, or with a dict of values by the names
    that the table has for them. With a `lab` its workers train side by side, one combination and seed each; without
    one they are trained here in turn. Budget, seeds, table, plot and files are those of `labkit.compare`. To stop or
    pause a sweep on a lab gives up what is under way; `resume()` does it again.

    Raises SettingError, ModelError, DataError or LabClosed, naming the combination, before anything runs.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> grid = {"algorithm": [lk.algorithms.LocalSGD(h) for h in (1, 8)], "batch_size": [16, 32]}
    >>> done = lk.sweep(grid, model, digits, peers=2, steps=8).result()
    >>> list(done.histories)[-1], len(done.histories)
    ('LocalSGD(every=8), batch_size=32', 4)
    """
    budget = budget_of(steps, bytes, seconds, settings)
    on = settings.pop("on", None)
    if isinstance(on, Lab):
        lab, on = on, None
    if isinstance(on, Cluster):
        raise SettingError(
            "A sweep trains in simulators, side by side: give lab=… for workers, and on=lk.Simulator(…)."
        )
    if lab is not None:
        lab.require_open()
    common = {"model": model, "dataset": dataset, "on": on, **settings}
    own = _combinations(grid, settings)
    each = seeds_of(seeds, seed)
    entries = {name: [planned(name, {**common, **it}, budget, k) for k in each] for name, it in own.items()}
    return Sweep(entries, budget, lab, common, own)


sweep.__signature__ = Settings.signature(  # type: ignore[attr-defined]  # what Shift+Tab shows
    sweep, without=("model", "dataset", *ENDS)
)


def _combinations(grid: Any, settings: Mapping[str, Any]) -> dict[str, _Own]:
    """The settings of each combination, by the name of it."""
    known = [field.name for field in fields(Settings) if field.name not in _NEVER]
    if not isinstance(grid, Mapping) or not grid:
        raise SettingError('There is nothing to sweep: give lists of settings by name, as {"batch_size": [16, 32]}.')
    if unknown := [name for name in grid if name not in known]:
        raise SettingError(f"A grid cannot have {name_all(unknown)}: it may vary {', '.join(known)}.")
    if twice := [name for name in grid if name in settings]:
        raise SettingError(f"The grid varies {name_all(twice)}, and it is given for all, too: leave one away.")
    axes = [_named_values(name, values) for name, values in grid.items()]
    return {
        ", ".join(label for label, _ in chosen): dict(zip(grid, (value for _, value in chosen), strict=True))
        for chosen in product(*axes)
    }


def _named_values(setting: str, values: Any) -> list[tuple[str, Any]]:
    """Each value of a setting with what it is called in the table."""
    if isinstance(values, Mapping):
        each = [(str(label), value) for label, value in values.items()]
    elif isinstance(values, Sequence) and not isinstance(values, str):
        each = [(called(value), value) for value in values]
    else:
        each = []
    if not each:
        raise SettingError(f"The grid has no list of values for {setting}: give [one, another], or a dict of them.")
    labels = [label for label, _ in each]
    if len(set(labels)) < len(labels):
        raise SettingError(
            f"Values of {setting} have the same name in the grid ({name_all(sorted(labels))}): give a dict of them by "
            "different names."
        )
    return [(label if setting == "algorithm" else f"{setting}={label}", value) for label, value in each]


class Sweep(Comparison):
    """A comparison of combinations of settings; with a lab its trainings are done by the workers."""

    things = "setting"

    def __init__(
        self,
        entries: Mapping[str, Sequence[Entry]],
        budget: Budget,
        lab: Lab | None,
        common: Mapping[str, Any],
        own: Mapping[str, _Own],
    ) -> None:
        self._lab, self._common, self._own = lab, common, own
        self._job: Job | None = None
        super().__init__(entries, budget)

    def stop(self) -> None:
        super().stop()
        if self._job is not None:
            self._job.cancel()

    def pause(self) -> None:
        if self._lab is None:
            super().pause()
        else:
            self.stop()

    def _train(self, left: Sequence[tuple[str, int]]) -> None:
        if self._lab is None or not left:
            super()._train(left)
            return
        items = [
            ({**self._own[name], "on": self._on_one_clock(entry)}, entry.experiment.seed)
            for name, entry in ((name, self._entries[name][k]) for name, k in left)
        ]
        self._job = self._lab.map(partial(_trained, self._common, self.budget), items)
        if self._control.wish is Wish.STOP:  # meanwhile
            self._job.cancel()
        try:
            for number, (history, error) in self._job.computed():
                name, k = self._now = left[number]
                self.repeats[name][k] = history
                self.histories[name] = self.repeats[name][0]
                if error is not None:
                    self.errors.setdefault(name, named(error, name))
                self._notify()
        except Stopped:
            if self._control.wish is not Wish.STOP:
                raise


def _trained(common: Mapping[str, Any], budget: Budget, item: tuple[_Own, int]) -> tuple[History, Exception | None]:
    """One training, on a worker: what it has measured, and what made it fail."""
    own, seed = item
    engine, experiment = plan(Settings(**{**common, **own}, seed=seed), budget)
    history = blank(engine, experiment)
    try:
        carry_out(engine, experiment, history, history.take, Control())
    except Exception as error:  # noqa: BLE001  the other combinations are worth having
        return history, error
    return history, None
