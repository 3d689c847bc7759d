"""Exercises on work that is split, scheduled and synchronised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from labkit.cards.judges import judge_schedule, named
from labkit.check.answers import (
    Part,
    Passed,
    answer_of,
    drawn,
    exercise,
    first_wrong,
    fresh_cases,
    graded,
    in_line,
    listed,
    near,
    numbers_of,
    verdict,
    wrong,
)
from labkit.checks import Floats, Integers
from labkit.errors import CheckFailed
from labkit.tasks.schedule import Schedule, schedule as _schedule
from labkit.tasks.sync import SSP, synchronize

PUZZLE = (4.0, 4.0, 7.0, 6.0, 3.0, 6.0, 4.0, 5.0, 4.0, 2.0, 7.0, 5.0)
"""Costs in seconds of the twelve tasks of the puzzle; three workers need 19 s, longest-first takes 20 s."""


@exercise
def speedup(fn: Callable[[float, float, int], tuple[float, float]], *, seed: int | None = None) -> Passed:
    """fn(serial, parallel, workers) → (speed-up, efficiency): T₁/Tₙ and T₁/(n·Tₙ), both times in seconds."""

    def explain(got: Floats, expected: Floats, *_: float) -> tuple[str, str, str]:
        if near(got, expected[::-1]):
            hint = "the speed-up comes first"
        elif not near(got[0], expected[0]):
            hint = "the speed-up is the serial time over the parallel time, and may be below one or above the workers"
        else:
            hint = "the efficiency is the speed-up that each worker contributes, as a fraction and not in percent"
        return listed(got), listed(expected), hint

    cases = [(10.0, 2.5, 4), (10.0, 10.0, 2), (9.0, 6.0, 3), (2.0, 4.0, 2), (12.0, 2.0, 4)]
    wanted = "two numbers, speed-up and efficiency"

    def fresh(rng: np.random.Generator) -> tuple[float, float, int]:
        return float(rng.integers(1, 200) / 4), float(rng.integers(1, 80) / 4), int(rng.integers(2, 33))

    return graded(
        "speedup({:g}, {:g}, {})",
        fn,
        cases,
        lambda a, b, n: (a / b, a / b / n),
        explain,
        wanted,
        fresh=fresh,
        seed=seed,
    )


@exercise
def split(fn: Callable[[int, int], Sequence[Sequence[int]]], *, seed: int | None = None) -> Passed:
    """fn(n, parts) → one list of indices for each part: blocks of neighbours, sizes differing by at most one."""

    def answer(n: int, parts: int) -> tuple[str, list[list[int]]]:
        call = f"split({n}, {parts})"
        got = _parts(call, answer_of(call, fn, n, parts))
        if len(got) != parts:
            hint = "every worker gets a list, if need be an empty one"
            raise wrong(call, f"{len(got)} parts", f"{parts} parts", hint)
        return call, got

    def union(n: int, parts: int) -> None:
        call, got = answer(n, parts)
        flat = list(chain.from_iterable(got))
        if astray := [item for item in flat if not 0 <= item < n]:
            raise wrong(call, str(got), f"indices 0 to {n - 1}", f"there is no {named(astray, 'item')}")
        if lost := [item for item in range(n) if item not in flat]:
            hint = f"nobody holds {named(lost, 'item')}: where does the remainder n % parts go"
            raise wrong(call, str(got), "every index once", hint)
        if twice := sorted({item for item in flat if flat.count(item) > 1}):
            raise wrong(call, str(got), "every index once", f"{named(twice, 'item')} is held more than once")

    def balanced(n: int, parts: int) -> None:
        union(n, parts)  # of half of the indices nobody asks how they lie
        call, got = answer(n, parts)
        sizes = [len(part) for part in got]
        if max(sizes) - min(sizes) > 1:
            hint = "give one item of the remainder to each of the first parts"
            raise wrong(call, f"parts of {sizes} items", "sizes that differ by at most one", hint)

    def neighbours(n: int, parts: int) -> None:
        union(n, parts)
        call, got = answer(n, parts)
        if list(chain.from_iterable(got)) != list(range(n)):
            raise wrong(call, str(got), "blocks of neighbours, in order", "this deals the items out in another order")

    seed = drawn(seed)
    cases = [(8, 2), (9, 3), (7, 3), (11, 4), (9, 4), (5, 5), (6, 1), (3, 2)]
    cases += fresh_cases(lambda rng: (n := int(rng.integers(2, 40)), int(rng.integers(1, min(n, 9) + 1))), seed)
    properties = {"no index is lost or held twice": union, "sizes differ by at most one": balanced,
                  "blocks of neighbours, in order": neighbours}  # fmt: skip
    return verdict("split", [Part(it, [partial(has, *case) for case in cases]) for it, has in properties.items()], seed)


_LOADS: list[tuple[list[float], int]] = [
    ([3, 3, 2, 2, 2], 2),
    ([1, 2, 3, 4, 5, 6], 3),
    ([1, 1, 1, 1, 4], 2),  # order matters: the long task is last
    ([2, 0, 5, 0, 3, 4], 2),  # tasks that cost nothing
    ([5, 4], 4),  # more workers than tasks
    ([7, 1, 3], 1),
    ([2.5, 9, 4, 4, 1.5, 7, 3, 6, 2, 8, 5, 5], 4),
]


@exercise
def lpt(fn: Callable[[list[float], int], Sequence[int]], *, seed: int | None = None) -> Passed:
    """fn(costs, workers) → the worker of each task, in the order of `costs`, done as early as longest-first is."""

    def answer(costs: list[float], workers: int) -> tuple[str, Integers]:
        call = f"lpt({costs}, {workers})"
        return call, _workers(call, answer_of(call, fn, list(costs), workers), len(costs), workers)

    def early(costs: list[float], workers: int) -> None:
        call, got = answer(costs, workers)
        makespan, limit = _load(got, costs, workers), _schedule(costs, workers, policy="lpt").makespan
        if makespan > limit * (1 + 1e-9):
            hint = (
                "take the tasks longest first, give each to the worker that is free first, "
                "and report the workers in the order in which the tasks were given"
            )
            raise wrong(call, f"{got.tolist()}, done at {makespan:g} s", f"done by {limit:g} s", hint)

    def fresh(rng: np.random.Generator) -> tuple[list[float], int]:
        costs = rng.integers(1, 10, rng.integers(1, 11)).tolist()
        return costs, int(rng.integers(1, 5))

    seed = drawn(seed)
    cases = [*_LOADS, *fresh_cases(fresh, seed)]
    parts = [Part("every task has one worker", [partial(answer, *case) for case in cases]),
             Part("done as early as longest-first", [partial(early, *case) for case in cases])]  # fmt: skip
    return verdict("lpt", parts, seed)


@exercise
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
            raise wrong("this plan", has, f"{len(costs)} tasks on at most {workers}", "plan the puzzle's own tasks")
        if not (verdict := judge_schedule(plan, None)):
            raise CheckFailed(f"This is no schedule yet: {verdict.sentence}.")
        if (short := np.flatnonzero(taken < 0.99 * np.asarray(costs))).size:
            at = short[0]
            hint = "every task has to be done whole"
            raise wrong(f"task {at}", f"{taken[at]:.4g} s of work", f"{costs[at]:g} s", hint)
        got = plan.makespan
    else:
        got = _load(_workers("this plan", plan, len(costs), workers), costs, workers)
    if got > makespan * (1 + 1e-9):
        hint = "look at the worker that ends last, and swap one of its tasks for a shorter one of another worker"
        raise wrong("this plan", f"done at {got:.4g} s", f"{makespan:g} s or less", hint)
    return Passed("schedule", f"{len(costs)} tasks on {workers} workers, done within {makespan:g} s")


_STEPS: list[list[list[float]]] = [  # seconds, [workers][steps]
    [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    [[1, 1, 1, 1, 1], [3, 3, 3, 3, 3]],
    [[1, 1, 6, 1, 1], [2, 2, 2, 2, 2], [1, 3, 1, 3, 1]],  # a hiccup: the slowest worker changes
    [[0, 0, 2, 0], [1, 1, 1, 1]],
    [[2, 1, 2]],  # nobody to wait for
]


@exercise
def ssp(fn: Callable[[list[list[float]], int], Sequence[Sequence[float]]], *, seed: int | None = None) -> Passed:
    """fn(step_times, s) → when each step starts, [workers][steps], all in seconds, under bounded staleness.

    A worker starts step k (k = 0, 1, …) once it has finished its own step k − 1 and every worker has finished k − s
    steps (Ho et al., NIPS 2013); s = 0 is a barrier after each step.
    """

    def explain(got: Floats, expected: Floats, times: list[list[float]], s: int) -> tuple[str, str, str]:
        worker, step = first_wrong(got, expected)
        by_all = f"all have finished {max(0, step - s)} steps"
        if got[worker, step] < expected[worker, step]:
            hint = f"a step {step} has to wait until {by_all}, and for the worker's own last"
        else:
            hint = f"{by_all} by then, so there is nothing left to wait for"
        where = f"a start of step {step} on worker {worker} at"
        return f"{where} {got[worker, step]:g} s", f"{expected[worker, step]:g} s", hint

    cases = [(times, s) for times in _STEPS for s in (0, 1, 3)]
    parts = {"a barrier (s = 0)": (1, lambda _, s: s == 0), "bounded staleness (s > 0)": (1, lambda _, s: s > 0)}
    return graded(
        "ssp({}, s={})", fn, cases, lambda times, s: synchronize(times, SSP(s)).start, explain, "{} lists of {}",
        fresh=lambda rng: (_some_steps(rng), int(rng.integers(0, 5))), parts=parts, seed=seed,
    )  # fmt: skip


def _some_steps(rng: np.random.Generator) -> list[list[float]]:
    """Times of two or three workers and four to six steps, at random."""
    times: list[list[float]] = rng.integers(1, 9, (rng.integers(2, 4), rng.integers(4, 7))).astype(float).tolist()
    return times


@exercise
def frontier(fn: Callable[[list[list[float]], float], int], *, seed: int | None = None) -> Passed:
    """fn(finish, t) → how many steps every worker has finished by time t (at t counts), |𝒯_sync| = |∩ 𝒯ᵢ|.

    `finish` is [workers][steps] in seconds.
    """

    def finished(finish: list[list[float]], t: float) -> Integers:
        steps: Integers = (np.asarray(finish) <= t).sum(axis=1)  # of each worker, in order
        return steps

    def explain(got: float, expected: float, finish: list[list[float]], t: float) -> tuple[str, str, str]:
        done = finished(finish, t)
        if got == (np.asarray(finish) < t).sum(axis=1).min():
            hint = f"a step that ends exactly at {t:g} s is finished"
        elif got == done.max():
            hint = "that is the fastest worker's count: the intersection needs every worker"
        else:
            hint = "the workers have finished " + ", ".join(map(str, done)) + " steps: which of these do all share"
        return f"{got:g}", f"{expected:g}", hint

    lines = [synchronize(times, SSP(1)).finish for times in _STEPS]
    cases = [(line.tolist(), float(t)) for line in lines for t in (0.5, 2.0, line.max())]

    def fresh(rng: np.random.Generator) -> tuple[list[list[float]], float]:
        finish = synchronize(_some_steps(rng), SSP(2)).finish
        return finish.tolist(), float(rng.choice(finish.ravel()) + rng.integers(0, 2) / 2)

    right = lambda finish, t: finished(finish, t).min()  # noqa: E731  a line of a table
    return graded("frontier({}, t={:g})", fn, cases, right, explain, fresh=fresh, seed=seed)


def _parts(call: str, got: Any) -> list[list[int]]:
    try:
        return [[int(item) for item in part] for part in got]
    except (TypeError, ValueError):
        raise wrong(call, in_line(got), "a list of lists of indices", "give one list for each part") from None


def _workers(call: str, got: Any, tasks: int, workers: int) -> Integers:
    chosen = numbers_of(call, got, (tasks,), f"a worker for each of {tasks} tasks")
    if strange := [worker for worker in chosen.tolist() if worker not in range(workers)]:
        raise wrong(call, f"worker {strange[0]:g}", f"workers 0 to {workers - 1}", "workers are numbered from 0")
    return chosen.astype(np.int64)


def _load(chosen: Integers, costs: Sequence[float], workers: int) -> float:
    """Seconds until the busiest worker is done."""
    return float(np.bincount(chosen, weights=np.asarray(costs, dtype=np.float64), minlength=workers).max())
