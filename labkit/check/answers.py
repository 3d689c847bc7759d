"""Answers to exercises: cases that are tried, points for each property, and the card that says what is wrong.

A card shows the input, what came back, what was expected and a hint, and of the traceback only the learner's own lines:
never a line of labkit, which might be the answer. It speaks the language that is on; an error's sentence stays English.
"""

from __future__ import annotations

import os
import re
import secrets
import traceback
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from textwrap import shorten
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import numpy as np

from labkit.check import limits
from labkit.checks import Floats, whole
from labkit.classroom.posting import post
from labkit.errors import CheckFailed
from labkit.text import a, some
from labkit.translation.translate import tr

P = ParamSpec("P")
T = TypeVar("T")
Case = tuple[Any, ...]

FRESH = 20  # random cases besides the fixed ones, other ones each time
_OURS = str(Path(__file__).parents[1])
_RED, _GREEN, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[0m"


@dataclass(frozen=True, repr=False)
class Passed:
    """An exercise that is right, or, for a grader that gives points for parts, whose parts are right to `points`."""

    exercise: str
    said: str
    points: float = 1.0

    def __repr__(self) -> str:
        return f"✓ {self.exercise}: {tr(self.said)}"


@dataclass(frozen=True, repr=False)
class Partly(Passed):
    """An exercise some of whose properties hold, where a grader reads the points from what a cell returns."""

    def __repr__(self) -> str:
        return f"{self.points:g}"


class Part:
    """One property of an answer: so many points if every trial of it returns, none if one raises CheckFailed."""

    def __init__(self, name: str, trials: Sequence[Callable[[], Any]], points: int = 1) -> None:
        self.name, self.trials, self.points = name, trials, points
        self.failed: CheckFailed | None = None

    def examine(self) -> None:
        """Make the trials until one fails."""
        for trial in self.trials:
            try:
                trial()
            except CheckFailed as failed:
                self.failed = failed
                return


def exercise(check: Callable[P, T]) -> Callable[P, T]:
    """A check that tells the class board what is right, and whose CheckFailed shows no line of labkit, not in a
    script's traceback either."""

    @wraps(check)
    def without_our_lines(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            got = check(*args, **kwargs)
        except CheckFailed as failed:
            told = failed
            told.card = told.card or _refused(failed)
        else:
            if isinstance(got, Passed) and not isinstance(got, Partly):
                post({"event": "passed", "exercise": got.exercise})
            return got
        raise told.with_traceback(None) from told.__cause__

    return without_our_lines


def verdict(name: str, parts: Sequence[Part], seed: int | None = None) -> Passed:
    """Passed, if all properties hold; else CheckFailed with the first wrong answer, and the card with all of them.

    `seed` is that of the fresh cases, which the card names. Under nbgrader's autograder some of the points come back as
    a number, which it takes for partial credit; no points fail the cell there, too.
    """
    for part in parts:
        part.examine()
        if isinstance(part.failed, TookTooLong):  # a loop that ran out of time once needs no second time
            break
    tried = parts[: parts.index(part) + 1]
    faults = [it.failed for it in tried if it.failed]
    total = sum(it.points for it in parts)
    got = sum(it.points for it in tried if not it.failed)
    if not faults:
        count = sum(len(it.trials) for it in parts)
        said = f"{count} cases right" + f", {total} of {some(total, 'point')}" * (len(parts) > 1)
        return Passed(name, said, total)
    failed = faults[0]
    failed.card = failed.card or _refused(failed)
    failed.points, failed.of = float(got), float(total)
    if len(parts) > 1:
        failed.card = _card(name, parts, tried, got, total)
    if seed is not None:
        failed.card += "\n  " + tr(f"The same cases once more: add seed={seed}.")
    if got and os.environ.get("NBGRADER_EXECUTION") == "autograde":
        print(failed.card)
        return Partly(name, str(failed), got)
    raise failed


def _card(name: str, parts: Sequence[Part], tried: Sequence[Part], got: int, total: int) -> str:
    lines, told = [f"{_RED}✗ {name}{_PLAIN}: " + tr(f"{got} of {some(total, 'point')}")], set()
    for it in parts:
        part = f"{tr(it.name)} ({tr(some(it.points, 'point'))})"
        if it not in tried:
            lines.append(f"  · {part}: {tr('not tried')}")
        elif it.failed is None:
            lines.append(f"  {_GREEN}✓{_PLAIN} {part}")
        else:
            lines.append(f"  {_RED}✗{_PLAIN} {part}")
            inner = re.sub(r"^\S*✗\S* ", "", it.failed.card or tr(str(it.failed)))
            if inner not in told:
                lines += [f"      {line}" for line in inner.splitlines()]
            told.add(inner)
    return "\n".join(lines)


def graded(
    call: str,
    fn: Callable[..., Any],
    cases: Sequence[Case],
    right: Callable[..., Any],
    explain: Callable[..., tuple[str, str, str]],
    wanted: str = "one number",
    *,
    fresh: Callable[[np.random.Generator], Case] | None = None,
    parts: Mapping[str, tuple[int, Callable[..., bool]]] | None = None,
    seed: int | None = None,
) -> Passed:
    """The verdict on `fn`, which should give what `right` gives of every case, up to rounding.

    `call` is how a call reads, with {} for each argument; `wanted` says in words what shape the answer has, with {} for
    each of its dimensions. `explain(got, expected, *case)` says of a wrong answer what came back, what was expected,
    and a hint. `fresh(rng)` makes one more case, at random: a table of the fixed ones is no answer. `parts` names
    properties, each with its points and which cases are its own; what belongs to none is the first one's.
    """
    cases, seed = list(cases), drawn(seed)
    if fresh:
        cases += fresh_cases(fresh, seed)

    def trial(case: Case) -> None:
        this = " ".join(call.format(*case).split())  # a matrix, too, in one line
        expected = np.asarray(right(*deepcopy(case)), dtype=np.float64)
        got = numbers_of(this, answer_of(this, fn, *deepcopy(case)), expected.shape, wanted.format(*expected.shape))
        if not near(got, expected):
            raise wrong(this, *explain(got, expected, *case))

    name = call.partition("(")[0]
    owned: dict[str, list[Case]] = {it: [] for it in parts} if parts else {name: []}
    for case in cases:
        mine = [it for it, (_, has) in (parts or {}).items() if has(*case)]
        owned[mine[0] if mine else next(iter(owned))].append(case)
    points = {it: worth for it, (worth, _) in parts.items()} if parts else {name: 1}
    made = [Part(it, [partial(trial, case) for case in some], points[it]) for it, some in owned.items()]
    return verdict(name, made, seed if fresh else None)


def drawn(seed: int | None) -> int:
    """The seed of fresh cases: the one that was asked for, or another one each time."""
    return secrets.randbelow(10**6) if seed is None else whole(seed, "seed", least=0)


def fresh_cases(make: Callable[[np.random.Generator], T], seed: int, number: int = FRESH) -> list[T]:
    """So many random cases; the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    return [make(rng) for _ in range(number)]


class TookTooLong(CheckFailed):
    """An answer that came to no end."""


def answer_of(call: str, fn: Callable[..., Any], *args: Any) -> Any:
    """What the function gives; CheckFailed where it raises, gives nothing, comes to no end or asks the kernel to."""
    if not callable(fn):
        raise CheckFailed(f"Give the function itself, without brackets: this is {a(type(fn).__name__)}.")
    try:
        got = limits.call(fn, *args)
    except limits.OutOfTime:
        message = f"{call} has not ended after {limits.SECONDS:g} s and was stopped: is there a loop without an end?"
        raise TookTooLong(message) from None
    except SystemExit:
        raise CheckFailed(f"{call} called exit: end your function with a return instead.") from None
    except CheckFailed:  # a check's own, of what the answer gave
        raise
    except Exception as error:
        error.__traceback__ = _theirs(error.__traceback__)
        failed = CheckFailed(f"{call} raised {type(error).__name__}: {error}.")
        shown = "".join(traceback.format_tb(error.__traceback__, limit=-3)).rstrip()
        failed.card = _refused(failed) + (f"\n{shown}" if shown else "")
        raise failed from error
    if got is None:
        raise CheckFailed(f"{call} gave None: does your function end in a return?")
    return got


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the first line on that is not labkit's."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return trace


def numbers_of(call: str, got: Any, shape: tuple[int, ...], wanted: str) -> Floats:
    """The answer as numbers of that shape; CheckFailed where it is something else than `wanted` says."""
    try:
        given = np.asarray(got.detach() if hasattr(got, "detach") else got)
        numbers = None if given.dtype.kind in "SU" else given.astype(np.float64)  # a text of a number is no number
    except (TypeError, ValueError, RuntimeError, OverflowError):
        numbers = None
    if numbers is None or numbers.shape != shape:
        raise wrong(call, in_line(got), wanted, "check what your function returns")
    return numbers


def near(got: Any, right: Any) -> bool:
    """Whether numbers are equal up to rounding."""
    return bool(_close(got, right).all())


def first_wrong(got: Floats, right: Floats) -> tuple[int, ...]:
    """Where the first number stands that is not near the right one, of arrays that are not near each other."""
    return tuple(np.argwhere(~_close(got, right))[0].tolist())


def _close(got: Any, right: Any) -> Any:
    return np.isclose(got, right, rtol=1e-6, atol=1e-9)


def in_line(got: Any) -> str:
    """Anything in one line."""
    try:
        said = repr(got)
    except Exception:  # noqa: BLE001  a number of too many digits, an object of the learner's own
        said = f"<{type(got).__name__}>"
    return shorten(said, 160, placeholder=" …")


def listed(values: Any) -> str:
    """Floats in brackets."""
    return "(" + ", ".join(f"{number:.4g}" for number in values) + ")"


def wrong(call: str, got: str, expected: str, hint: str) -> CheckFailed:
    """The sentence for a wrong answer, and its card."""
    failed = CheckFailed(f"{call} gave {got}; expected {expected}: {hint}.")
    rows = {"gave": got, "expected": expected, "hint": hint}
    failed.card = f"{_RED}✗{_PLAIN} {tr(call)}"
    for name, said in rows.items():
        failed.card += f"\n    {tr(name):8}  {said if said == 'None' else tr(said)}"  # Python's, and not the word
    return failed


def _refused(failed: CheckFailed) -> str:
    """The card of what could not be tried."""
    return f"{_RED}✗{_PLAIN} {tr(str(failed))}"
