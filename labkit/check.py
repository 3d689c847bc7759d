"""Exercises that check themselves: `lk.check.<exercise>(your_function)`.

Each returns `Passed`, or raises CheckFailed with one sentence: the input, what came back, what was expected, a hint.
The cases are fixed, so the same answer gets the same verdict everywhere.

>>> from labkit import check
>>> check.speedup(lambda serial, parallel, workers: (serial / parallel, serial / parallel / workers))
✓ speedup: 5 cases right
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from textwrap import shorten
from typing import Any

import numpy as np
import numpy.typing as npt

from labkit.errors import CheckFailed
from labkit.tasks.plan import Schedule
from labkit.tasks.schedule import schedule as _schedule
from labkit.tasks.sync import SSP, synchronize
from labkit.verdicts import judge_schedule, named

__all__ = ["PUZZLE", "Passed", "frontier", "lpt", "mean_gradient", "schedule", "speedup", "split", "ssp"]

Numbers = npt.NDArray[np.float64]

PUZZLE = (4.0, 4.0, 7.0, 6.0, 3.0, 6.0, 4.0, 5.0, 4.0, 2.0, 7.0, 5.0)
"""Costs in seconds of the twelve tasks of the puzzle; three workers need 19 s, longest-first takes 20 s."""


@dataclass(frozen=True, repr=False)
class Passed:
    """An exercise that is right."""

    exercise: str
    said: str

    def __repr__(self) -> str:
        return f"✓ {self.exercise}: {self.said}"


def speedup(fn: Callable[[float, float, int], tuple[float, float]]) -> Passed:
    """fn(serial, parallel, workers) → (speed-up, efficiency): T₁/Tₙ and T₁/(n·Tₙ), both times in seconds."""
    cases = [(10.0, 2.5, 4), (10.0, 10.0, 2), (9.0, 6.0, 3), (2.0, 4.0, 2), (12.0, 2.0, 4)]
    for serial, parallel, workers in cases:
        call = f"speedup({serial:g}, {parallel:g}, {workers})"
        got = _numbers(call, _call(call, fn, serial, parallel, workers), (2,), "two numbers, speed-up and efficiency")
        right = (serial / parallel, serial / parallel / workers)
        if _near(got, right):
            continue
        if _near(got, right[::-1]):
            hint = "the speed-up comes first"
        elif not _near(got[:1], right[:1]):
            hint = "the speed-up is the serial time over the parallel time, and may be below one or above the workers"
        else:
            hint = "the efficiency is the speed-up that each worker contributes, as a fraction and not in percent"
        raise _wrong(call, _tuple(got), _tuple(right), hint)
    return _passed("speedup", cases)


def split(fn: Callable[[int, int], Sequence[Sequence[int]]]) -> Passed:
    """fn(n, parts) → one list of indices for each part: blocks of neighbours, sizes differing by at most one."""
    cases = [(8, 2), (9, 3), (7, 3), (11, 4), (9, 4), (5, 5), (6, 1), (3, 2)]
    for n, parts in cases:
        call = f"split({n}, {parts})"
        got = _parts(call, _call(call, fn, n, parts))
        flat = list(chain.from_iterable(got))
        if len(got) != parts:
            raise _wrong(
                call, f"{len(got)} parts", f"{parts} parts", "every worker gets a list, if need be an empty one"
            )
        if astray := [item for item in flat if not 0 <= item < n]:
            raise _wrong(call, str(got), f"indices 0 to {n - 1}", f"there is no {named(astray, 'item')}")
        if lost := [item for item in range(n) if item not in flat]:
            hint = f"nobody holds {named(lost, 'item')}: where does the remainder n % parts go"
            raise _wrong(call, str(got), "every index once", hint)
        if twice := sorted({item for item in flat if flat.count(item) > 1}):
            raise _wrong(call, str(got), "every index once", f"{named(twice, 'item')} is held more than once")
        sizes = [len(part) for part in got]
        if max(sizes) - min(sizes) > 1:
            hint = "give one item of the remainder to each of the first parts"
            raise _wrong(call, f"parts of {sizes} items", "sizes that differ by at most one", hint)
        if flat != list(range(n)):
            raise _wrong(call, str(got), "blocks of neighbours, in order", "this deals the items out in another order")
    return _passed("split", cases)


_LOADS: list[tuple[list[float], int]] = [
    ([3, 3, 2, 2, 2], 2),
    ([1, 2, 3, 4, 5, 6], 3),
    ([1, 1, 1, 1, 4], 2),  # order matters: the long task is last
    ([2, 0, 5, 0, 3, 4], 2),  # tasks that cost nothing
    ([5, 4], 4),  # more workers than tasks
    ([7, 1, 3], 1),
    ([2.5, 9, 4, 4, 1.5, 7, 3, 6, 2, 8, 5, 5], 4),
]


def lpt(fn: Callable[[list[float], int], Sequence[int]]) -> Passed:
    """fn(costs, workers) → the worker of each task, in the order of `costs`, done as early as longest-first is."""
    for costs, workers in _LOADS:
        call = f"lpt({costs}, {workers})"
        got = _workers(call, _call(call, fn, list(costs), workers), len(costs), workers)
        makespan = _load(got, costs, workers)
        limit = _schedule(costs, workers, policy="lpt").makespan
        if makespan > limit * (1 + 1e-9):
            hint = (
                "take the tasks longest first, give each to the worker that is free first, "
                "and report the workers in the order in which the tasks were given"
            )
            raise _wrong(call, f"{got.tolist()}, done at {makespan:g} s", f"done by {limit:g} s", hint)
    return _passed("lpt", _LOADS)


def schedule(
    plan: Schedule | Sequence[int], *, makespan: float, costs: Sequence[float] = PUZZLE, workers: int = 3
) -> Passed:
    """The puzzle: `plan` does all tasks of `costs` (seconds) on `workers` workers within `makespan` seconds.

    `plan` is the worker of each task, or a Schedule, predicted or measured on real workers.
    """
    if isinstance(plan, Schedule):
        taken = np.asarray(plan.finish - plan.start, dtype=np.float64)
        if len(taken) != len(costs) or plan.workers > workers:
            has = f"{len(taken)} tasks on {plan.workers} workers"
            raise _wrong("this plan", has, f"{len(costs)} tasks on at most {workers}", "plan the puzzle's own tasks")
        if not (verdict := judge_schedule(plan, None)):
            raise CheckFailed(f"This is no schedule yet: {verdict.sentence}.")
        if (short := np.flatnonzero(taken < 0.99 * np.asarray(costs))).size:
            at = short[0]
            raise _wrong(
                f"task {at}",
                f"{taken[at]:.4g} s of work",
                f"{costs[at]:g} s",
                "every task has to be done whole",
            )
        got = plan.makespan
    else:
        got = _load(_workers("this plan", plan, len(costs), workers), costs, workers)
    if got > makespan * (1 + 1e-9):
        hint = "look at the worker that ends last, and swap one of its tasks for a shorter one of another worker"
        raise _wrong("this plan", f"done at {got:.4g} s", f"{makespan:g} s or less", hint)
    return Passed("schedule", f"{len(costs)} tasks on {workers} workers, done within {makespan:g} s")


_STEPS: list[list[list[float]]] = [  # seconds, [workers][steps]
    [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    [[1, 1, 1, 1, 1], [3, 3, 3, 3, 3]],
    [[1, 1, 6, 1, 1], [2, 2, 2, 2, 2], [1, 3, 1, 3, 1]],  # a hiccup: the slowest worker changes
    [[0, 0, 2, 0], [1, 1, 1, 1]],
    [[2, 1, 2]],  # nobody to wait for
]


def ssp(fn: Callable[[list[list[float]], int], Sequence[Sequence[float]]]) -> Passed:
    """fn(step_times, s) → when each step starts, [workers][steps], all in seconds, under bounded staleness.

    A worker starts step k (k = 0, 1, …) once it has finished its own step k − 1 and every worker has finished k − s
    steps (Ho et al., NIPS 2013); s = 0 is a barrier after each step.
    """
    cases = [(times, s) for times in _STEPS for s in (0, 1, 3)]
    for times, s in cases:
        call = f"ssp({times}, s={s})"
        shape = (len(times), len(times[0]))
        got = _numbers(call, _call(call, fn, [list(row) for row in times], s), shape, f"{shape[0]} lists of {shape[1]}")
        right = np.asarray(synchronize(times, SSP(s)).start, dtype=np.float64)
        if _near(got, right):
            continue
        worker, step = np.argwhere(~np.isclose(got, right))[0]
        early = got[worker, step] < right[worker, step]
        hint = (
            f"a step {step} has to wait until all have finished {max(0, step - s)} steps, and for the worker's own last"
            if early
            else f"all have finished {max(0, step - s)} steps by then, so there is nothing left to wait for"
        )
        where = f"a start of step {step} on worker {worker} at"
        raise _wrong(call, f"{where} {got[worker, step]:g} s", f"{right[worker, step]:g} s", hint)
    return _passed("ssp", cases)


def frontier(fn: Callable[[list[list[float]], float], int]) -> Passed:
    """fn(finish, t) → how many steps every worker has finished by time t (at t counts), |𝒯_sync| = |∩ 𝒯ᵢ|.

    `finish` is [workers][steps] in seconds.
    """
    lines = [synchronize(times, SSP(1)).finish for times in _STEPS]
    cases = [(line, float(t)) for line in lines for t in (0.5, 2.0, float(line.max()))]
    for finish, t in cases:
        call = f"frontier({finish.tolist()}, t={t:g})"
        got = _numbers(call, _call(call, fn, finish.tolist(), t), (), "one number")
        done = (finish <= t).sum(axis=1)  # steps each worker has finished, in order
        if got == done.min():
            continue
        if got == (finish < t).sum(axis=1).min():
            hint = f"a step that ends exactly at {t:g} s is finished"
        elif got == done.max():
            hint = "that is the fastest worker's count: the intersection needs every worker"
        else:
            hint = "the workers have finished " + ", ".join(map(str, done)) + " steps: which of these do all share"
        raise _wrong(call, f"{got:g}", str(done.min()), hint)
    return _passed("frontier", cases)


def mean_gradient(fn: Callable[[list[Numbers], list[int]], Any]) -> Passed:
    """fn(gradients, sizes) → the gradient of the joined batch, from each worker's mean gradient [D] and batch size."""
    cases = [[4, 4], [8, 2], [1, 2, 5], [6, 0, 3], [7]]
    rng = np.random.default_rng(0)
    for sizes in cases:
        x, w = rng.normal(size=(sum(sizes), 3)), rng.normal(size=3)
        y = rng.normal(size=sum(sizes))
        owner = np.repeat(np.arange(len(sizes)), sizes)
        gradients = [_gradient(x[owner == worker], y[owner == worker], w) for worker in range(len(sizes))]
        call = f"mean_gradient(gradients, {sizes})"
        sent = [gradient.copy() for gradient in gradients]
        got = _numbers(call, _call(call, fn, sent, list(sizes)), (3,), "one gradient of 3 numbers")
        if not all(map(np.array_equal, sent, gradients)):
            raise _wrong(
                call,
                "a changed input",
                "inputs left alone",
                "start the sum from zeros, not from a worker's own array",
            )
        right = _gradient(x, y, w)  # of the joined batch, computed from its examples
        if not _near(got, right):
            plain = _near(got, np.mean(gradients, axis=0))
            hint = "each worker counts as many times as it has examples" + (", not once" if plain else "")
            raise _wrong(call, _tuple(got), _tuple(right), hint)
    return _passed("mean_gradient", cases)


def _gradient(x: Numbers, y: Numbers, w: Numbers) -> Numbers:
    """∇ of the mean squared error of the linear model x·w; zero for an empty batch."""
    return 2 * x.T @ (x @ w - y) / max(1, len(y))


def _call(call: str, fn: Callable[..., Any], *args: Any) -> Any:
    if not callable(fn):
        raise CheckFailed(f"Give the function itself, without brackets: this is a {type(fn).__name__}.")
    try:
        got = fn(*args)
    except Exception as error:
        raise CheckFailed(f"{call} raised {type(error).__name__}: {error}; the traceback above shows where.") from error
    if got is None:
        raise CheckFailed(f"{call} gave None: does your function end in a return?")
    return got


def _numbers(call: str, got: Any, shape: tuple[int, ...], wanted: str) -> Numbers:
    try:
        numbers = np.asarray(got, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        numbers = None
    if numbers is None or numbers.shape != shape:
        raise _wrong(call, _line(got), wanted, "check what your function returns")
    return numbers


def _parts(call: str, got: Any) -> list[list[int]]:
    try:
        return [[int(item) for item in part] for part in got]
    except (TypeError, ValueError):
        raise _wrong(call, _line(got), "a list of lists of indices", "give one list for each part") from None


def _workers(call: str, got: Any, tasks: int, workers: int) -> npt.NDArray[np.int64]:
    chosen = _numbers(call, got, (tasks,), f"a worker for each of {tasks} tasks")
    if strange := [worker for worker in chosen.tolist() if worker not in range(workers)]:
        raise _wrong(call, f"worker {strange[0]:g}", f"workers 0 to {workers - 1}", "workers are numbered from 0")
    return chosen.astype(np.int64)


def _load(chosen: npt.NDArray[np.int64], costs: Sequence[float], workers: int) -> float:
    """Seconds until the busiest worker is done."""
    return float(np.bincount(chosen, weights=np.asarray(costs, dtype=np.float64), minlength=workers).max())


def _near(got: Any, right: Any) -> bool:
    return bool(np.allclose(got, right, rtol=1e-6, atol=1e-9))


def _line(got: Any) -> str:
    return shorten(repr(got), 160, placeholder=" …")


def _tuple(numbers: Any) -> str:
    return "(" + ", ".join(f"{number:.4g}" for number in numbers) + ")"


def _wrong(call: str, got: str, expected: str, hint: str) -> CheckFailed:
    return CheckFailed(f"{call} gave {got}; expected {expected}: {hint}.")


def _passed(exercise: str, cases: Sequence[Any]) -> Passed:
    return Passed(exercise, f"{len(cases)} cases right")
