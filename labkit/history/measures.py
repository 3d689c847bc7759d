"""Measures: what tests tell of models, by name: accuracy where there are classes, test loss, and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from statistics import fmean, stdev

from labkit.errors import SettingError
from labkit.history.rows import Row
from labkit.text import percent

LOWER = ("test loss", "client loss", "loss")  # what is the better the lower it is
CLIENTS = ("client accuracy", "client loss")  # each on test examples of its own
TAKEN = ("loss", "accuracy", "test loss", "round", "seconds", "bytes", "steps", "learning rate", *CLIENTS)  # by rows
HIGHER = ("accuracy", "client accuracy")  # shares of what is right


def values_of(row: Row, measure: str) -> tuple[float, ...] | None:
    """What a row has of this measure, of each peer or of all together; None where it was not measured."""
    if measure == "accuracy":
        return row.accuracies
    return row.test_losses if measure == "test loss" else row.metrics.get(measure)


def mean_of(row: Row, measure: str) -> float | None:
    """The mean over the peers; None where it was not measured."""
    values = values_of(row, measure)
    return fmean(values) if values else None


def measures_of(rows: Sequence[Row]) -> list[str]:
    """What these rows tell of models: accuracy, or test loss where there is none, comes first, then the metrics."""
    first = next((it for it in ("accuracy", "test loss") if any(values_of(row, it) is not None for row in rows)), None)
    return [*([first] if first else []), *dict.fromkeys(name for row in rows for name in row.metrics)]


def lower_is_better(measure: str, better: str | None) -> bool:
    """Whether less of a measure is better; SettingError for one of the user's own of which it was not said."""
    if better is None and measure not in (*LOWER, *HIGHER):
        raise SettingError(
            f'Nothing says whether more or less of {measure!r} is better: give better="higher" or better="lower".'
        )
    if better not in (None, "higher", "lower"):
        raise SettingError(f'better={better!r} is unknown; choose "higher" or "lower".')
    return measure in LOWER if better is None else better == "lower"


def in_words(measure: str, value: float | None) -> str:
    """A value as people write it; a dash where there is none.

    >>> in_words("accuracy", 0.956), in_words("test loss", 0.12345), in_words("mae", None)
    ('95.6%', '0.1235', '–')
    """
    if value is None or measure in HIGHER:
        return percent(value)
    return f"{value:.4g}"


def spread_in_words(measure: str, values: tuple[float, ...] | None) -> str:
    """A mean; of clients also the standard deviation over them, and the worst.

    >>> spread_in_words("client accuracy", (0.5, 0.7)), spread_in_words("accuracy", (0.5, 0.7))
    ('60.0% ± 14.1%, worst 50.0%', '60.0%')
    """
    mean = in_words(measure, fmean(values) if values else None)
    if not values or not measure.startswith("client ") or len(values) == 1:
        return mean
    each = f"{mean} ± {in_words(measure, stdev(values))}"
    return each if measure not in (*LOWER, *HIGHER) else f"{each}, worst {in_words(measure, worst(measure, values))}"


def worst(measure: str, values: Sequence[float]) -> float:
    """The worst of several values; NaN where nothing says which way that is.

    >>> worst("client accuracy", (0.5, 0.7)), worst("client loss", (0.5, 0.7))
    (0.5, 0.7)
    """
    known = [value for value in values if not isnan(value)]
    if not known or measure not in (*LOWER, *HIGHER):
        return nan
    return max(known) if measure in LOWER else min(known)
