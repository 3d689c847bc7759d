"""The exercises: right answers pass, typical wrong ones fail with the sentence that helps."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from labkit import check
from labkit.errors import CheckFailed
from labkit.history.history import History, Row
from labkit.tasks.schedule import Schedule, schedule
from labkit.tasks.sync import SSP, synchronize
from tests.check import (
    answers_on_choices,
    answers_on_clients,
    answers_on_clusters,
    answers_on_large_models,
    answers_on_many_models,
    answers_on_networks,
    answers_on_scaling,
)

ANSWERS = (
    answers_on_choices,
    answers_on_clients,
    answers_on_clusters,
    answers_on_large_models,
    answers_on_many_models,
    answers_on_networks,
    answers_on_scaling,
)

# -- right answers


def block(n: int, parts: int) -> list[list[int]]:
    edges = [part * n // parts for part in range(parts + 1)]
    return [list(range(a, b)) for a, b in pairwise(edges)]


def longest_first(costs: Sequence[float], workers: int, order: Sequence[int] | None = None) -> list[int]:
    free = [(0.0, worker) for worker in range(workers)]
    chosen = [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda task: -costs[task]) if order is None else order:
        at, chosen[task] = heapq.heappop(free)
        heapq.heappush(free, (at + costs[task], chosen[task]))
    return chosen


def bounded(times: list[list[float]], s: float) -> list[list[float]]:
    workers, steps = range(len(times)), range(len(times[0]))
    start = [[0.0] * len(steps) for _ in workers]
    finish = [[0.0] * len(steps) for _ in workers]
    for k in steps:
        for i in workers:
            own = finish[i][k - 1] if k else 0.0
            common = max(finish[j][k - 1 - int(s)] for j in workers) if k - 1 - s >= 0 else 0.0
            start[i][k] = max(own, common)
            finish[i][k] = start[i][k] + times[i][k]
    return start


def weighted(gradients: list[Any], sizes: list[int]) -> Any:
    return sum(size * gradient for size, gradient in zip(sizes, gradients, strict=True)) / sum(sizes)


def missed(order: list[int]) -> list[int]:
    read: dict[int, int] = {}
    ages = []
    for version, peer in enumerate(order):
        ages.append(version - read.get(peer, 0))
        read[peer] = version + 1
    return ages


def others_since(order: list[int]) -> list[int]:
    last = [max([j for j in range(i) if order[j] == order[i]], default=-1) for i in range(len(order))]
    return [i - j - 1 for i, j in enumerate(last)]


RIGHT: dict[str, list[Callable[..., Any]]] = {
    "speedup": [lambda a, b, n: (a / b, a / b / n), lambda a, b, n: np.array([a / b, a / (n * b)])],
    "split": [block, lambda n, p: np.array_split(np.arange(n), p), lambda n, p: [range(*r) for r in ranges(n, p)]],
    "lpt": [longest_first, lambda c, w: np.array(longest_first(c, w)), lambda c, w: schedule(c, w).worker],
    "ssp": [bounded, lambda times, s: synchronize(times, SSP(s)).start],
    "frontier": [
        lambda finish, t: min(sum(end <= t for end in row) for row in finish),
        lambda finish, t: len(set.intersection(*({k for k, end in enumerate(row) if end <= t} for row in finish))),
    ],
    "mean_gradient": [weighted, lambda g, n: np.average(g, axis=0, weights=n)],
    "staleness": [missed, others_since],
    "local_bytes": [lambda p, n, h: 2 * (n - 1) / n * 4 * p / h],
    "lost_rounds": [lambda done, every: done % every, lambda done, every: done - done // every * every],
    "checkpoint_interval": [lambda c, m: (2 * c * m) ** 0.5, lambda c, m: float(np.sqrt(2 * c * m))],
}


def ranges(n: int, parts: int) -> list[tuple[int, int]]:
    return [(part[0], part[-1] + 1) for part in block(n, parts)]


RIGHT |= {name: [fn] for answers in ANSWERS for name, fn in answers.RIGHT.items()}


@pytest.mark.parametrize(("exercise", "fn"), [(name, fn) for name, fns in RIGHT.items() for fn in fns])
def test_a_right_answer_passes(exercise: str, fn: Callable[..., Any]) -> None:
    passed = getattr(check, exercise)(fn)
    assert isinstance(passed, check.Passed)
    assert re.fullmatch(rf"✓ {exercise}: \d+ cases right(, (\d) of \2 points)?", repr(passed))


# -- wrong answers, and what is said of them


def lost_remainder(n: int, parts: int) -> list[list[int]]:
    size = n // parts
    return [list(range(part * size, (part + 1) * size)) for part in range(parts)]


def remainder_to_the_last(n: int, parts: int) -> list[list[int]]:
    size = n // parts
    return [*lost_remainder(n, parts)[:-1], list(range((parts - 1) * size, n))]


def ceil_chunks(n: int, parts: int) -> list[list[int]]:
    size = -(-n // parts)
    return [list(range(start, min(n, start + size))) for start in range(0, n, size)]


def overlapping(n: int, parts: int) -> list[list[int]]:
    size = -(-n // parts)
    return [list(range(part * n // parts, min(n, part * n // parts + size))) for part in range(parts)]


def in_sorted_order(costs: list[float], workers: int) -> list[int]:
    return longest_first(sorted(costs, reverse=True), workers)


def in_place(gradients: list[Any], sizes: list[int]) -> Any:
    total = gradients[0]
    total *= sizes[0]
    for gradient, size in zip(gradients[1:], sizes[1:], strict=True):
        total += size * gradient
    return total / sum(sizes)


def without_own_step(times: list[list[float]], s: float) -> list[list[float]]:
    return synchronize(np.asarray(times) * 0.5, SSP(s)).start.tolist()


WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("staleness", lambda order: [0] * len(order), "others pushed 1 time"),
    ("staleness", lambda o: [v + (o[i] in o[:i]) for i, v in enumerate(missed(o))], "has seen its own push"),
    ("staleness", lambda order: 3, "numbers, one for each push"),
    ("local_bytes", lambda p, n, h: 2 * (n - 1) / n * p / h, "takes 4 bytes"),
    ("local_bytes", lambda p, n, h: 2 * (n - 1) / n * 4 * p, "only after every so many steps"),
    ("local_bytes", lambda p, n, h: 4 * p / h * n, "times the vector from each peer"),
    ("lost_rounds", lambda done, every: every - done % every, "next checkpoint would still have taken"),
    ("lost_rounds", lambda done, every: done % every or every, "round 10 is saved"),
    ("lost_rounds", lambda done, every: done, "last checkpoint was made after round 5"),
    ("checkpoint_interval", lambda c, m: (c * m) ** 0.5, "half an interval on average"),
    ("checkpoint_interval", lambda c, m: 2 * c * m, "this is its square"),
    ("checkpoint_interval", lambda c, m: m / 2, "derivative of C/k"),
    ("speedup", lambda a, b, n: (b / a, b / a / n), "over the parallel time"),
    ("speedup", lambda a, b, n: (a / b / n, a / b), "the speed-up comes first"),
    ("speedup", lambda a, b, n: (a / b, 100 * a / b / n), "fraction and not in percent"),
    ("speedup", lambda a, b, n: (min(a / b, n), min(a / b / n, 1)), "above the workers"),
    ("speedup", lambda a, b, n: a / b, "two numbers, speed-up and efficiency"),
    ("split", lost_remainder, r"split\(7, 3\) gave .*nobody holds item 6: where does the remainder"),
    ("split", remainder_to_the_last, r"parts of \[2, 2, 2, 5\] items.*differ by at most one"),
    ("split", ceil_chunks, r"split\(7, 3\) gave parts of \[3, 3, 1\] items"),
    ("split", lambda n, p: [part for part in ceil_chunks(n, p) if n != 7], r"gave 0 parts; expected 3 parts"),
    ("split", overlapping, r"split\(7, 3\) .*held more than once"),
    ("split", lambda n, p: [list(range(part, n, p)) for part in range(p)], "blocks of neighbours"),
    ("split", lambda n, p: [[item + 1 for item in part] for part in block(n, p)], "there is no item 8"),
    ("split", lambda n, p: list(range(n)), "one list for each part"),
    ("lpt", lambda c, w: [task % w for task in range(len(c))], "take the tasks longest first"),
    ("lpt", lambda c, w: longest_first(c, w, range(len(c))), r"lpt\(\[1, 2, 3, 4, 5, 6\], 3\).*longest first"),
    ("lpt", lambda c, w: longest_first(c, w, sorted(range(len(c)), key=c.__getitem__)), "longest first"),
    ("lpt", in_sorted_order, "in the order in which the tasks were given"),
    ("lpt", lambda c, w: [worker + 1 for worker in longest_first(c, w)], "numbered from 0"),
    ("lpt", lambda c, w: longest_first([cost for cost in c if cost], w), "a worker for each of 6 tasks"),
    ("ssp", lambda times, s: synchronize(times, SSP(0)).start, "nothing left to wait for"),
    ("ssp", lambda times, s: synchronize(times, SSP(s + 1)).start, "has to wait until all have finished 1 steps"),
    ("ssp", lambda times, s: synchronize(times, SSP(s)).finish, "gave a start of step 0 on worker 0 at 1 s"),
    ("ssp", lambda times, s: np.transpose(synchronize(times, SSP(s)).start), "2 lists of 5"),
    ("ssp", without_own_step, "the worker's own last"),
    ("frontier", lambda finish, t: max(sum(end <= t for end in row) for row in finish), "fastest worker's count"),
    ("frontier", lambda finish, t: min(sum(end < t for end in row) for row in finish), "ends exactly at"),
    ("frontier", lambda finish, t: sum(end <= t for row in finish for end in row), "which of these do all share"),
    ("frontier", lambda finish, t: [sum(end <= t for end in row) for row in finish], "one number"),
    ("mean_gradient", lambda g, n: np.mean(g, axis=0), r"\[8, 2\].*as it has examples, not once"),
    ("mean_gradient", lambda g, n: np.sum(g, axis=0), "the sum of all, which no longer is a mean"),
    ("mean_gradient", lambda g, n: weighted(g, n) * sum(n) / len(n), "as many times as it has examples"),
    ("mean_gradient", in_place, "not from a worker's own array"),
    ("mean_gradient", lambda g, n: weighted(g, n).sum(), "one gradient of 3 numbers"),
    *(wrong for answers in ANSWERS for wrong in answers.WRONG),
]


@pytest.mark.parametrize(("exercise", "fn", "said"), WRONG, ids=[f"{name}: {said}" for name, _, said in WRONG])
def test_a_wrong_answer_is_told_what_is_wrong(exercise: str, fn: Callable[..., Any], said: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        getattr(check, exercise)(fn)
    sentence, card = str(caught.value), caught.value.card
    assert re.search(said, sentence) or re.search(said, re.sub(r"\n +(gave|expected|hint) +", r" \1 ", card))
    assert sentence.startswith(exercise) and sentence.endswith(".") and "\n" not in sentence
    assert " gave " in sentence and " expected " in sentence


# What misses by more than rounding, and by less than numpy's own bound.
HARDLY_WRONG = {
    "metropolis": lambda edges, n: answers_on_networks.metropolis(edges, n) * (1 + 5e-6),
    "staleness": lambda order: np.multiply(missed(order), 1 + 5e-6),
    "ssp": lambda times, s: np.multiply(bounded(times, s), 1 + 5e-6),
}


@pytest.mark.parametrize("exercise", HARDLY_WRONG)
def test_a_number_that_is_hardly_wrong_is_pointed_at(exercise: str) -> None:
    with pytest.raises(CheckFailed, match=r"gave .* expected"):
        getattr(check, exercise)(HARDLY_WRONG[exercise])


def test_an_answer_that_changes_what_it_is_given_is_judged_by_what_it_was_given() -> None:
    def greedy(order: list[int]) -> list[int]:
        ages = missed(order)
        order.clear()
        return ages

    assert check.staleness(greedy) and check.staleness(missed)


@pytest.mark.parametrize("exercise", RIGHT)
class TestEveryExercise:
    def test_says_which_call_raised_and_keeps_the_cause(self, exercise: str) -> None:
        def broken(*args: Any) -> Any:
            return {}["missing"]

        with pytest.raises(CheckFailed, match=rf"{exercise}\(.* raised KeyError: 'missing'") as caught:
            getattr(check, exercise)(broken)
        assert isinstance(caught.value.__cause__, KeyError)

    def test_asks_for_a_return(self, exercise: str) -> None:
        with pytest.raises(CheckFailed, match=r"gave None: does your function end in a return\?"):
            getattr(check, exercise)(lambda *args: None)

    def test_asks_for_the_function_itself(self, exercise: str) -> None:
        with pytest.raises(CheckFailed, match="without brackets: this is a list"):
            getattr(check, exercise)([0, 1])

    def test_refuses_nonsense(self, exercise: str) -> None:
        with pytest.raises(CheckFailed, match="expected"):
            getattr(check, exercise)(lambda *args: "abc")

    def test_wants_as_many_arguments_as_it_gives(self, exercise: str) -> None:
        with pytest.raises(CheckFailed, match="raised TypeError"):
            getattr(check, exercise)(lambda: 0)

    def test_does_not_swallow_an_interrupt(self, exercise: str) -> None:
        def interrupted(*args: Any) -> Any:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            getattr(check, exercise)(interrupted)


# -- the puzzle

# worker 0: 7 + 7 + 5, worker 1: 6 + 6 + 5 + 2, worker 2: 4 + 4 + 4 + 4 + 3
SOLVED = [2, 2, 0, 1, 2, 1, 2, 0, 2, 1, 0, 1]


def test_the_puzzle_can_be_solved_but_not_by_any_policy() -> None:
    assert repr(check.schedule(SOLVED, makespan=19)) == "✓ schedule: 12 tasks on 3 workers, done within 19 s"
    assert sum(check.PUZZLE) == 3 * 19  # so nobody can be faster
    for policy in ("fifo", "list", "lpt", "heft", "stealing"):
        plan = schedule(check.PUZZLE, 3, policy)
        with pytest.raises(CheckFailed, match=rf"done at {plan.makespan:.4g} s; expected 19 s or less.*swap"):
            check.schedule(plan, makespan=19)
    assert check.schedule(schedule(check.PUZZLE, 3, "lpt"), makespan=20)


PLANS: list[tuple[Any, str]] = [
    (SOLVED[:-1], "a worker for each of 12 tasks"),
    ([3, *SOLVED[1:]], "numbered from 0"),
    ([0.5, *SOLVED[1:]], "numbered from 0"),
    ([-1, *SOLVED[1:]], "numbered from 0"),
    ("lpt", "a worker for each of 12 tasks"),
    (schedule(check.PUZZLE, 4), "expected 12 tasks on at most 3"),
    (schedule(check.PUZZLE[:-1], 3), "11 tasks on 3 workers"),
    (schedule([cost / 2 for cost in check.PUZZLE], 3), r"task 0 gave 2 s of work; expected 4 s"),
    (schedule(check.PUZZLE, 3, speeds=[2, 2, 2]), "every task has to be done whole"),
]


@pytest.mark.parametrize(("plan", "said"), PLANS)
def test_the_puzzle_is_not_solved_by_another_one(plan: Any, said: str) -> None:
    with pytest.raises(CheckFailed, match=said):
        check.schedule(plan, makespan=100)


def test_the_puzzle_is_not_solved_by_doing_two_things_at_once() -> None:
    finish = np.asarray(check.PUZZLE)
    at_once = Schedule.measured([0] * 12, start=[0.0] * 12, finish=finish, workers=3)
    with pytest.raises(CheckFailed, match=r"no schedule yet: worker 0 does tasks .* at the same time"):
        check.schedule(at_once, makespan=19)


def test_the_puzzle_takes_what_real_workers_did() -> None:
    costs = [cost / 100 for cost in check.PUZZLE]
    plan = schedule(costs, 3)
    measured = Schedule.measured(plan.worker, plan.start * 1.02, plan.finish * 1.02, workers=3)
    assert check.schedule(measured, makespan=0.21, costs=costs)
    with pytest.raises(CheckFailed, match=r"expected 0\.2 s or less"):
        check.schedule(measured, makespan=0.2, costs=costs)


# -- the puzzle of lesson 09


def trained(nbytes: float = 9e5, accuracy: float | None = 0.93, peers: int = 2, ledger: str = "measured") -> History:
    row = Row(1, (0.1,), None if accuracy is None else (accuracy,), nbytes, 1.0)
    return History("LocalSGD", "cluster", peers, ledger=ledger, rows=[row])


def test_a_run_that_learned_enough_for_few_bytes_solves_the_puzzle() -> None:
    assert repr(check.traffic(trained())) == (
        "✓ traffic: 90% accuracy for less than 1 MB from each peer, on real workers"
    )


TRAFFIC: list[tuple[Any, str]] = [
    (trained(nbytes=1.2e6), r"1\.2 MB from each peer; expected at most 1 MB: average less often"),
    (trained(accuracy=0.85), r"85\.0%; expected at least 90%: spend the bytes"),
    (trained(accuracy=None), "no accuracy; expected at least 90%"),
    (trained(ledger="formula"), "sent nothing over a wire: train at least two peers with on=lab"),
    (trained(peers=1), "sent nothing over a wire"),
    (3, "Give the history of a run"),
]


@pytest.mark.parametrize(("run", "hint"), TRAFFIC)
def test_a_run_that_does_not_solve_it_is_told_why(run: Any, hint: str) -> None:
    with pytest.raises(CheckFailed, match=hint):
        check.traffic(run)
