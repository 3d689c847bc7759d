"""Numbers and sets as LaTeX, short enough to stand in one line of a formula."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from labkit.plots import duration


def braces(numbers: Iterable[int]) -> str:
    r"""A set of whole numbers; runs and long sets are shortened.

    >>> print(braces([0, 1, 2, 3, 4, 7]), braces([5, 2]), braces([0, 4, 8, 12, 16, 20]), braces([]))
    \{0,\dots,4,7\} \{2,5\} \{0,4,8,\dots,20\} \varnothing
    """
    found = np.unique(list(numbers)).astype(int)
    if not len(found):
        return r"\varnothing"
    runs = np.split(found, np.flatnonzero(np.diff(found) > 1) + 1)
    shown = [_run(run.tolist()) for run in runs]
    if len(shown) > 5:
        shown = [*shown[:3], r"\dots", shown[-1]]
    return rf"\{{{','.join(shown)}\}}"


def _run(run: list[int]) -> str:
    return rf"{run[0]},\dots,{run[-1]}" if len(run) > 3 else ",".join(map(str, run))


def chain(terms: Sequence[str], operator: str, most: int = 5) -> str:
    r"""The terms joined by an operator, those in the middle left out when there are many.

    >>> print(chain(["a", "b", "c"], r"\cup"), "and", chain(list("abcdef"), "+", most=3))
    a \cup b \cup c and a + b + \cdots + f
    """
    if len(terms) > most:
        terms = [*terms[: most - 1], r"\cdots", terms[-1]]
    return f" {operator} ".join(terms)


def seconds(value: float) -> str:
    r"""A duration in the unit that reads best.

    >>> print(seconds(2.4))
    2.4\,\text{s}
    """
    number, _, unit = duration(value).partition(" ")
    return rf"{number}\,\text{{{unit}}}"


def percent(share: float) -> str:
    r"""A share of one.

    >>> print(percent(0.956))
    95.6\,\%
    """
    return rf"{100 * share:.3g}\,\%"


def lines(*rows: str) -> str:
    """Equations below each other, aligned at their `&`."""
    return r"\begin{aligned} " + r" \\[2pt] ".join(rows) + r" \end{aligned}"
