"""Answers to exercises: whether what came back has the right shape, and the sentence that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import numpy as np

from labkit.checks import Floats
from labkit.errors import CheckFailed


@dataclass(frozen=True, repr=False)
class Passed:
    """An exercise that is right."""

    exercise: str
    said: str

    def __repr__(self) -> str:
        return f"✓ {self.exercise}: {self.said}"


def graded(
    call: str,
    fn: Callable[..., Any],
    cases: Sequence[tuple[Any, ...]],
    right: Callable[..., Any],
    explain: Callable[..., tuple[str, str, str]],
    wanted: str = "one number",
) -> Passed:
    """The verdict on `fn`, which should give what `right` gives of every case, up to rounding.

    `call` is how a call reads, with {} for each argument; `wanted` says in words what shape the answer has, with {} for
    each of its dimensions. `explain(got, expected, *case)` says of a wrong answer what came back, what was expected,
    and a hint.
    """
    for case in cases:
        this, expected = call.format(*case), np.asarray(right(*case), dtype=np.float64)
        got = numbers_of(this, answer_of(this, fn, *deepcopy(case)), expected.shape, wanted.format(*expected.shape))
        if not near(got, expected):
            raise wrong(this, *explain(got, expected, *case))
    return passed(call.partition("(")[0], cases)


def answer_of(call: str, fn: Callable[..., Any], *args: Any) -> Any:
    """What the function gives; CheckFailed where it raises, or gives nothing."""
    if not callable(fn):
        raise CheckFailed(f"Give the function itself, without brackets: this is a {type(fn).__name__}.")
    try:
        got = fn(*args)
    except Exception as error:
        raise CheckFailed(f"{call} raised {type(error).__name__}: {error}; the traceback above shows where.") from error
    if got is None:
        raise CheckFailed(f"{call} gave None: does your function end in a return?")
    return got


def numbers_of(call: str, got: Any, shape: tuple[int, ...], wanted: str) -> Floats:
    """The answer as numbers of that shape; CheckFailed where it is something else than `wanted` says."""
    try:
        numbers = np.asarray(got, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        numbers = None
    if numbers is None or numbers.shape != shape:
        raise wrong(call, in_line(got), wanted, "check what your function returns")
    return numbers


def near(got: Any, right: Any) -> bool:
    """Whether numbers are equal up to rounding."""
    return bool(np.allclose(got, right, rtol=1e-6, atol=1e-9))


def in_line(got: Any) -> str:
    """Anything in one line."""
    return shorten(repr(got), 160, placeholder=" …")


def listed(values: Any) -> str:
    """Floats in brackets."""
    return "(" + ", ".join(f"{number:.4g}" for number in values) + ")"


def wrong(call: str, got: str, expected: str, hint: str) -> CheckFailed:
    """The sentence for a wrong answer."""
    return CheckFailed(f"{call} gave {got}; expected {expected}: {hint}.")


def passed(exercise: str, cases: Sequence[Any]) -> Passed:
    """The verdict on a right one."""
    return Passed(exercise, f"{len(cases)} cases right")
