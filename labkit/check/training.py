"""Exercises on training together: gradients, their age, what agreeing costs, and what a failure takes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from labkit.check.answers import Numbers, Passed, answer_of, listed, near, numbers_of, passed, wrong
from labkit.costs.checkpoints import best_interval
from labkit.errors import CheckFailed
from labkit.history.history import History
from labkit.text import amount


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
        got = numbers_of(call, answer_of(call, fn, sent, list(sizes)), (3,), "one gradient of 3 numbers")
        if not all(map(np.array_equal, sent, gradients)):
            raise wrong(
                call,
                "a changed input",
                "inputs left alone",
                "start the sum from zeros, not from a worker's own array",
            )
        right = _gradient(x, y, w)  # of the joined batch, computed from its examples
        if not near(got, right):
            plain = near(got, np.mean(gradients, axis=0))
            hint = "each worker counts as many times as it has examples" + (", not once" if plain else "")
            raise wrong(call, listed(got), listed(right), hint)
    return passed("mean_gradient", cases)


def _gradient(x: Numbers, y: Numbers, w: Numbers) -> Numbers:
    """∇ of the mean squared error of the linear model x·w; zero for an empty batch."""
    return 2 * x.T @ (x @ w - y) / max(1, len(y))


def staleness(fn: Callable[[list[int]], Sequence[int]]) -> Passed:
    """fn(order) → how many updates each push had missed; `order` names the peer of each push at a server.

    A peer goes on from the server's weights as they are after its own push; at first all have the same.
    """
    cases = [[0, 1, 0, 1], [0, 0, 0], [0, 1, 2, 2, 1, 0], [1, 1, 1, 0, 1], [2, 0, 2, 1, 2, 0], []]
    for order in cases:
        call = f"staleness({order})"
        got = numbers_of(
            call, answer_of(call, fn, list(order)), (len(order),), f"{len(order)} numbers, one for each push"
        )
        last: dict[int, int] = {}
        right = []
        for version, peer in enumerate(order):
            right.append(version - last.get(peer, 0))
            last[peer] = version + 1
        if near(got, right):
            continue
        at = int(np.flatnonzero(~np.isclose(got, right))[0])
        own = near(got, np.array(right) + [order[at] in order[:at] for at in range(len(order))])
        hint = (
            "a peer has seen its own push"
            if own
            else f"since peer {order[at]} last heard from the server, others pushed {right[at]} times"
        )
        raise wrong(call, f"{got[at]:g} for push {at}", str(right[at]), hint)
    return passed("staleness", cases)


def local_bytes(fn: Callable[[int, int, int], float]) -> Passed:
    """fn(parameters, peers, every) → bytes that one peer sends for each step, if all average every so many steps.

    Parameters travel as 4 bytes each, by an all-reduce.
    """
    cases = [(1000, 2, 1), (1000, 4, 1), (4810, 2, 8), (4810, 8, 16), (10**6, 5, 50), (4810, 1, 4)]
    for parameters, peers, every in cases:
        call = f"local_bytes({parameters}, {peers}, {every})"
        got = float(numbers_of(call, answer_of(call, fn, parameters, peers, every), (), "one number"))
        once = 2 * (peers - 1) / peers * 4 * parameters
        if near(got, once / every):
            continue
        if near(4 * got, once / every):
            hint = "a parameter in single precision takes 4 bytes"
        elif near(got, once):
            hint = "this is what one average costs, and there is one only after every so many steps"
        else:
            hint = "an all-reduce sends 2(n−1)/n times the vector from each peer, and that is shared by H steps"
        raise wrong(call, f"{got:g}", f"{once / every:g}", hint)
    return passed("local_bytes", cases)


def traffic(history: History, *, accuracy: float = 0.9, most: float = 1e6) -> Passed:
    """The puzzle: a run on real workers that ends with at least this test accuracy and sent at most so many bytes."""
    if not isinstance(history, History):
        raise CheckFailed(f"Give the history of a run, as run.result() returns it: this is a {type(history).__name__}.")
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


def lost_rounds(fn: Callable[[int, int], int]) -> Passed:
    """fn(done, every) → rounds that are done again when a worker dies after `done` rounds, saved every so many."""
    cases = [(7, 5), (10, 5), (4, 5), (0, 5), (99, 10), (23, 1), (64, 48)]
    for done, every in cases:
        call = f"lost_rounds({done}, {every})"
        got = float(numbers_of(call, answer_of(call, fn, done, every), (), "one number"))
        right = done % every
        if got == right:
            continue
        if right == 0:
            hint = f"round {done} is saved, so nothing is done again" if done else "nothing was done yet"
        elif got == every - right:
            hint = "this is how many rounds the next checkpoint would still have taken"
        else:
            hint = f"the last checkpoint was made after round {done - right}"
        raise wrong(call, f"{got:g}", str(right), hint)
    return passed("lost_rounds", cases)


def checkpoint_interval(fn: Callable[[float, float], float]) -> Passed:
    """fn(cost, mtbf) → the seconds between checkpoints that lose least, where saving takes `cost` and one comes every
    `mtbf` seconds: the least of C/k + k/2M (Young 1974)."""
    cases = [(1.0, 200.0), (2.0, 100.0), (0.5, 3600.0), (30.0, 86_400.0)]
    for cost, mtbf in cases:
        call = f"checkpoint_interval({cost:g}, {mtbf:g})"
        got = float(numbers_of(call, answer_of(call, fn, cost, mtbf), (), "one number"))
        right = best_interval(cost, mtbf)
        if near(got, right):
            continue
        if near(got * math.sqrt(2), right):
            hint = "a failure takes back half an interval on average, not a whole one"
        elif near(got, right**2):
            hint = "this is its square"
        else:
            hint = "set the derivative of C/k + k/2M to zero"
        raise wrong(call, f"{got:g} s", f"{right:g} s", hint)
    return passed("checkpoint_interval", cases)
