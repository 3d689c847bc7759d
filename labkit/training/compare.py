"""compare: several algorithms on the same data, seeds and budget; accuracy against bytes against seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from labkit.algorithms import Algorithm
from labkit.checks import SEEDS, number, whole
from labkit.data import Dataset
from labkit.engines.budget import Budget
from labkit.errors import LabkitError, SettingError
from labkit.training.comparison import Comparison, Entry, named
from labkit.training.plan import plan
from labkit.training.settings import Model, Settings

_OWN = ("algorithm", "model", "optimizer", "loss", "public", "shards", "on")  # what an entry may set for itself
ENDS = ("rounds", "epochs", "until", "seed")  # of `labkit.train`: here a budget says when to end, and seeds how
_STEPS, _MOST_STEPS = 200, 10_000  # of a comparison that gives no budget, and of one that gives none in steps


def compare(
    algorithms: Mapping[str, Algorithm | Sequence[Algorithm] | Mapping[str, Any]],
    model: Model | Sequence[Model],
    dataset: Dataset,
    *,
    steps: int | None = None,
    bytes: float | None = None,
    seconds: float | None = None,
    seeds: int | Sequence[int] = 1,
    seed: int = 0,
    **settings: Any,
) -> Comparison:
    """Train by each of the named algorithms in turn, with the same data, seeds and budget; returns at once.

    The budget is counted, not planned: an entry goes on until its peers have taken `steps` gradient steps on average
    (200 unless another budget is given), each has sent so many `bytes`, or the run has lasted so many `seconds`,
    whichever comes first, and ends with that round; a round counts as a step at least. With `seeds` each entry is
    trained so many times, from seeds `seed`, `seed` + 1, … (or the listed ones), and table and plots have the mean and
    the standard deviation. `settings` are those of `labkit.train`. A value of `algorithms` may also be a dict with an
    "algorithm" and what else is different for it: "model", "optimizer", "loss", "public", "shards" or "on".

    Raises SettingError, ModelError, DataError or LabClosed, naming the entry, before anything runs.

    >>> import labkit as lk, torch
    >>> some = {"every step": lk.algorithms.AllReduce(), "every 8 steps": lk.algorithms.LocalSGD(8)}
    >>> done = lk.compare(some, lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), steps=80).result()
    >>> done.histories["every step"].bytes / done.histories["every 8 steps"].bytes
    8.0
    """
    if not isinstance(algorithms, Mapping) or not algorithms:
        raise SettingError(
            'There is nothing to compare: give algorithms by name, such as {"DDP": lk.algorithms.AllReduce()}.'
        )
    budget = budget_of(steps, bytes, seconds, settings)
    common = {"model": model, "dataset": dataset, **settings}
    entries = {
        name: [planned(name, {**common, **_own(name, given)}, budget, it) for it in seeds_of(seeds, seed)]
        for name, given in algorithms.items()
    }
    peers = {name: each[0].experiment.peers for name, each in entries.items()}
    if len(set(peers.values())) > 1:
        listed = ", ".join(f"{name!r} {count}" for name, count in peers.items())
        raise SettingError(f"The entries have different numbers of peers ({listed}): give peers=… for all of them.")
    return Comparison(entries, budget)


compare.__signature__ = Settings.signature(  # type: ignore[attr-defined]  # what Shift+Tab shows
    compare, without=("model", "dataset", "algorithm", *ENDS)
)


def budget_of(steps: int | None, bytes: float | None, seconds: float | None, settings: Mapping[str, Any]) -> Budget:
    """The budget that is given; SettingError for what is none, or for settings that say when to end in another way."""
    if ends := [it for it in ("rounds", "epochs", "until") if it in settings]:
        raise SettingError(
            f"A comparison ends when its budget is spent, such as steps={steps or _STEPS} of each peer: leave "
            f"{', '.join(ends)} away."
        )
    other = bytes is not None or seconds is not None
    return Budget(
        whole((_MOST_STEPS if other else _STEPS) if steps is None else steps, "steps"),
        None if bytes is None else number(bytes, "bytes", above=True),
        None if seconds is None else number(seconds, "seconds", above=True, unit="seconds"),
        bounded=other and steps is None,
    )


def seeds_of(seeds: int | Sequence[int], first: int) -> Sequence[int]:
    """The seeds that each entry is trained from."""
    if not isinstance(seeds, Sequence):
        return range(first, first + whole(seeds, "seeds"))
    each = [whole(it, "a seed", least=0, most=SEEDS) for it in seeds]
    if not each or len(set(each)) < len(each):
        raise SettingError(f"seeds={seeds!r} lists none, or one twice: give how many, or different ones.")
    return each


def planned(name: str, settings: Mapping[str, Any], budget: Budget, seed: int) -> Entry:
    """One training of an entry; what refuses it names the entry."""
    work = tuple(id(settings.get(part)) for part in ("model", "optimizer", "loss"))
    try:
        return Entry(*plan(Settings(**settings, seed=seed), budget), work)
    except LabkitError as error:
        raise named(error, name) from error


def _own(name: str, given: Any) -> dict[str, Any]:
    """What an entry sets for itself."""
    own = dict(given) if isinstance(given, Mapping) else {"algorithm": given}
    if unknown := set(own) - set(_OWN):
        raise SettingError(
            f"{name!r} sets {', '.join(sorted(unknown))} for itself: an entry may have {', '.join(_OWN)}, and all "
            "else is the same for everyone."
        )
    if "algorithm" not in own:
        raise SettingError(f'{name!r} has no algorithm: give {{"algorithm": lk.algorithms.AllReduce(), …}}.')
    return own
