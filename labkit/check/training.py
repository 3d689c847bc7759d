"""Exercises on training together: gradients, their age, what agreeing costs, and what a failure takes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from labkit.check.answers import (
    Part,
    Passed,
    answer_of,
    drawn,
    exercise,
    first_wrong,
    fresh_cases,
    graded,
    listed,
    near,
    numbers_of,
    verdict,
    wrong,
)
from labkit.checks import Floats
from labkit.costs.checkpoints import best_interval
from labkit.errors import CheckFailed
from labkit.history.history import History
from labkit.text import a, amount, some


@exercise
def mean_gradient(fn: Callable[[list[Floats], list[int]], Any], *, seed: int | None = None) -> Passed:
    """fn(gradients, sizes) → the gradient of the joined batch, from each worker's mean gradient [D] and batch size."""

    def trial(sizes: list[int]) -> None:
        rng = np.random.default_rng(len(sizes))
        x, w = rng.normal(size=(sum(sizes), 3)), rng.normal(size=3)
        y = rng.normal(size=sum(sizes))
        owner = np.repeat(np.arange(len(sizes)), sizes)
        gradients = [_gradient(x[owner == worker], y[owner == worker], w) for worker in range(len(sizes))]
        call = f"mean_gradient(gradients, {sizes})"
        sent = [gradient.copy() for gradient in gradients]
        got = numbers_of(call, answer_of(call, fn, sent, list(sizes)), (3,), "one gradient of 3 numbers")
        if not all(map(np.array_equal, sent, gradients)):
            hint = "start the sum from zeros, not from a worker's own array"
            raise wrong(call, "a changed input", "inputs left alone", hint)
        right = _gradient(x, y, w)  # of the joined batch, computed from its examples
        if not near(got, right):
            if near(got, np.mean(gradients, axis=0)):
                hint = "each worker counts as many times as it has examples, not once"
            elif near(got, np.sum(gradients, axis=0)):
                hint = "this is the sum of all, which no longer is a mean"
            else:
                hint = "each worker counts as many times as it has examples"
            raise wrong(call, listed(got), listed(right), hint)

    seed = drawn(seed)
    fresh = fresh_cases(lambda rng: rng.integers(1, 9, rng.integers(2, 5)).tolist(), seed)
    parts = {
        "equal batches": [[4, 4], [7], [3, 3, 3]],
        "unequal batches": [[8, 2], [1, 2, 5], *fresh],
        "workers without a batch": [[6, 0, 3], [0, 4]],
    }
    made = [Part(name, [partial(trial, sizes) for sizes in cases]) for name, cases in parts.items()]
    return verdict("mean_gradient", made, seed)


def _gradient(x: Floats, y: Floats, w: Floats) -> Floats:
    """∇ of the mean squared error of the linear model x·w; zero for an empty batch."""
    return 2 * x.T @ (x @ w - y) / max(1, len(y))


@exercise
def staleness(fn: Callable[[list[int]], Sequence[int]], *, seed: int | None = None) -> Passed:
    """fn(order) → how many updates each push had missed; `order` names the peer of each push at a server.

    A peer goes on from the server's weights as they are after its own push; at first all have the same.
    """

    def explain(got: Floats, expected: Floats, order: list[int]) -> tuple[str, str, str]:
        (at,) = first_wrong(got, expected)
        if near(got, expected + [order[at] in order[:at] for at in range(len(order))]):
            hint = "a peer has seen its own push"
        else:
            times = some(int(expected[at]), "time")
            hint = f"since peer {order[at]} last heard from the server, others pushed {times}"
        return f"{got[at]:g} for push {at}", f"{expected[at]:g}", hint

    orders = [[0, 1, 0, 1], [0, 0, 0], [0, 1, 2, 2, 1, 0], [1, 1, 1, 0, 1], [2, 0, 2, 1, 2, 0], []]
    cases = [(order,) for order in orders]
    return graded(
        "staleness({})", fn, cases, _missed, explain, "{} numbers, one for each push", seed=seed,
        fresh=lambda rng: (rng.integers(0, 4, rng.integers(3, 11)).tolist(),),
    )  # fmt: skip


def _missed(order: Sequence[int]) -> list[int]:
    last: dict[int, int] = {}
    missed = []
    for version, peer in enumerate(order):
        missed.append(version - last.get(peer, 0))
        last[peer] = version + 1
    return missed


@exercise
def local_bytes(fn: Callable[[int, int, int], float], *, seed: int | None = None) -> Passed:
    """fn(parameters, peers, every) → bytes that one peer sends for each step, if all average every so many steps.

    Parameters travel as 4 bytes each, by an all-reduce.
    """

    def explain(got: float, expected: float, parameters: int, peers: int, every: int) -> tuple[str, str, str]:
        if near(4 * got, expected):
            hint = "a parameter in single precision takes 4 bytes"
        elif near(got, expected * every):
            hint = "this is what one average costs, and there is one only after every so many steps"
        else:
            hint = "an all-reduce sends 2(n−1)/n times the vector from each peer, and that is shared by H steps"
        return f"{got:g}", f"{expected:g}", hint

    cases = [(1000, 2, 1), (1000, 4, 1), (4810, 2, 8), (4810, 8, 16), (10**6, 5, 50), (4810, 1, 4)]
    parts = {"an average at every step": (1, lambda s, n, h: h == 1), "local steps": (1, lambda s, n, h: h > 1)}

    def fresh(rng: np.random.Generator) -> tuple[int, int, int]:
        return int(rng.integers(10, 10**6)), int(rng.integers(2, 17)), int(rng.choice([1, 2, 5, 10, 32]))

    return graded(
        "local_bytes({}, {}, {})", fn, cases, lambda s, n, h: 2 * (n - 1) / n * 4 * s / h, explain,
        fresh=fresh, parts=parts, seed=seed,
    )  # fmt: skip


@exercise
def traffic(history: History, *, accuracy: float = 0.9, most: float = 1e6) -> Passed:
    """The puzzle: a run on real workers that ends with at least this test accuracy and sent at most so many bytes."""
    if not isinstance(history, History):
        raise CheckFailed(
            f"Give the history of a run, as run.result() returns it: this is {a(type(history).__name__)}."
        )
    if history.ledger != "measured" or history.peers < 2:
        raise CheckFailed(
            "This run sent nothing over a wire: train at least two peers with on=lab, so that the bytes are counted."
        )
    if history.bytes > most:
        hint = "average less often, send less each time, or train for fewer steps"
        raise wrong("this run", f"{amount(history.bytes)} from each peer", f"at most {amount(most)}", hint)
    reached = history.final.accuracy
    if reached is None or reached < accuracy:
        shown = "no accuracy" if reached is None else f"{reached:.1%}"
        raise wrong("this run", shown, f"at least {accuracy:.0%}", "spend the bytes you have left, or step further")
    return Passed("traffic", f"{accuracy:.0%} accuracy for less than {amount(most)} from each peer, on real workers")


@exercise
def lost_rounds(fn: Callable[[int, int], int], *, seed: int | None = None) -> Passed:
    """fn(done, every) → rounds that are done again when a worker dies after `done` rounds, saved every so many."""

    def explain(got: float, expected: float, done: int, every: int) -> tuple[str, str, str]:
        if expected == 0:
            hint = f"round {done} is saved, so nothing is done again" if done else "nothing was done yet"
        elif got == every - expected:
            hint = "this is how many rounds the next checkpoint would still have taken"
        else:
            hint = f"the last checkpoint was made after round {done - expected:g}"
        return f"{got:g}", f"{expected:g}", hint

    cases = [(7, 5), (10, 5), (4, 5), (0, 5), (99, 10), (23, 1), (64, 48)]
    fresh = lambda rng: (int(rng.integers(0, 1000)), int(rng.integers(2, 100)))  # noqa: E731  a line of a table
    return graded("lost_rounds({}, {})", fn, cases, lambda done, every: done % every, explain, fresh=fresh, seed=seed)


@exercise
def checkpoint_interval(fn: Callable[[float, float], float], *, seed: int | None = None) -> Passed:
    """fn(cost, mtbf) → the seconds between checkpoints that lose least, where saving takes `cost` and one comes every
    `mtbf` seconds: the least of C/k + k/2M (Young 1974)."""

    def explain(got: float, expected: float, cost: float, mtbf: float) -> tuple[str, str, str]:
        if near(got * math.sqrt(2), expected):
            hint = "a failure takes back half an interval on average, not a whole one"
        elif near(got, expected**2):
            hint = "this is its square"
        else:
            hint = "set the derivative of C/k + k/2M to zero"
        return f"{got:g} s", f"{expected:g} s", hint

    cases = [(1.0, 200.0), (2.0, 100.0), (0.5, 3600.0), (30.0, 86_400.0)]
    fresh = lambda rng: (float(rng.integers(1, 40)) / 2, float(rng.integers(50, 10_000)))  # noqa: E731
    return graded("checkpoint_interval({:g}, {:g})", fn, cases, best_interval, explain, fresh=fresh, seed=seed)
