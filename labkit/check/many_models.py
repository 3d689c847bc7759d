"""Exercises on many models that learn together, and on labels that are wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from labkit.check.answers import Passed, answer_of, exercise, graded, in_line, near, wrong
from labkit.checks import Floats, Integers
from labkit.errors import CheckFailed


@exercise
def disagreement(fn: Callable[[Integers], float], seed: int | None = None) -> Passed:
    """fn(answers) → the share of examples on which the peers do not all say the same, from their answers [n, N]."""

    def explain(got: float, expected: float, answers: Integers) -> tuple[str, str, str]:
        if near(got, 1 - expected):
            hint = "this is the share on which they agree"
        elif near(got, expected * answers.shape[1]):
            hint = "a share is asked for, not a number of examples"
        else:
            hint = "an example counts as soon as one peer differs from the first one"
        return f"{got:.4g}", "another share", hint

    def fresh(rng: np.random.Generator) -> tuple[Integers]:
        return (rng.integers(0, 3, (int(rng.integers(2, 5)), int(rng.integers(3, 9)))),)

    cases = [(np.array([[1, 2, 3], [1, 2, 0]]),), (np.array([[1, 1], [1, 1], [1, 1]]),), (np.array([[0, 1, 2, 3]]),)]
    return graded("disagreement({})", fn, cases, _differ, explain, fresh=fresh, seed=seed)


def _differ(answers: Integers) -> float:
    return float((answers != answers[0]).any(axis=0).mean())


@exercise
def mutual_bytes(fn: Callable[[int, int, int], float], seed: int | None = None) -> Passed:
    """fn(peers, examples, classes) → bytes that one of the peers sends in an epoch of mutual learning, each probability
    in 4 bytes, to every other peer by itself."""

    def explain(got: float, expected: float, peers: int, examples: int, classes: int) -> tuple[str, str, str]:
        if near(4 * got, expected):
            hint = "a number in single precision takes 4 bytes"
        elif near(got, expected / max(1, peers - 1) * peers):
            hint = "nobody sends anything to itself"
        else:
            hint = "a prediction is one number for each class, and goes to each of the others, for every example"
        return f"{got:g}", "another number of bytes", hint

    def fresh(rng: np.random.Generator) -> tuple[int, int, int]:
        return int(rng.integers(2, 20)), int(rng.integers(10, 5000)), int(rng.integers(2, 1000))

    cases = [(2, 1438, 10), (3, 1438, 10), (5, 50_000, 100)]
    say = "mutual_bytes({}, {}, {})"
    return graded(say, fn, cases, lambda k, n, c: 4 * (k - 1) * n * c, explain, fresh=fresh, seed=seed)


@exercise
def break_even(fn: Callable[[int, int, int], float], seed: int | None = None) -> Passed:
    """The puzzle: fn(parameters, peers, classes) → the batch size from which sending predictions to all others costs
    more bytes of a step than an all-reduce of the gradients."""

    def explain(got: float, expected: float, parameters: int, peers: int, classes: int) -> tuple[str, str, str]:
        if near(got, expected * peers):
            hint = "an all-reduce sends 2(n−1)/n times the gradient: do not forget the n below"
        elif near(2 * got, expected):
            hint = "an all-reduce sends nearly two gradients"
        else:
            hint = "set (n−1)·B·C equal to 2(n−1)/n·P, and solve for B"
        return f"{got:g}", "another batch size", hint

    def fresh(rng: np.random.Generator) -> tuple[int, int, int]:
        return int(rng.integers(1000, 10**7)), int(rng.integers(2, 20)), int(rng.integers(2, 1000))

    cases = [(4810, 2, 10), (25_557_032, 4, 1000)]
    say = "break_even({}, {}, {})"
    return graded(say, fn, cases, lambda p, n, c: 2 * p / (n * c), explain, fresh=fresh, seed=seed)


@exercise
def softened(fn: Callable[[Floats, float], Any], seed: int | None = None) -> Passed:
    """fn(scores, temperature) → a teacher's probabilities [C] at this temperature: softmax(scores / T)."""

    def explain(got: Floats, expected: Floats, scores: Floats, temperature: float) -> tuple[str, str, str]:
        if near(got, _softmax(scores)):
            hint = "divide the scores by the temperature first"
        elif near(got, _softmax(scores * temperature)):
            hint = "this makes the teacher surer; a high temperature makes it less sure"
        elif not near(got.sum(), 1.0):
            hint = "probabilities add up to 1"
        else:
            hint = "exponentials of scores over temperature, over their sum"
        return str(got.round(3).tolist()), "other probabilities", hint

    def fresh(rng: np.random.Generator) -> tuple[Floats, float]:
        return rng.normal(size=4).round(2) * 3, round(float(rng.uniform(0.5, 8.0)), 1)

    cases = [(np.array([2.0, 0.0, -1.0]), 1.0), (np.array([2.0, 0.0, -1.0]), 4.0), (np.array([5.0, 5.0]), 2.0)]
    right = lambda s, t: _softmax(s / t)  # noqa: E731
    return graded("softened({}, {:g})", fn, cases, right, explain, "{} probabilities", fresh=fresh, seed=seed)


def _softmax(scores: Floats) -> Floats:
    p = np.exp(scores - scores.max())
    return np.asarray(p / p.sum())


@exercise
def picked(fn: Callable[[Floats, float], Sequence[int]], seed: int | None = None) -> Passed:
    """fn(partner_losses, keep) → in ascending order the examples to learn from: the share `keep` that the partner finds
    easiest, at least one, rounded down."""

    def explain(got: Floats, expected: Floats, losses: Floats, keep: float) -> tuple[str, str, str]:
        hard = np.sort(np.argsort(-losses, kind="stable")[: len(expected)])
        if near(got, hard):
            hint = "these are the hardest; what a network finds hard for long is often labelled wrongly"
        elif sorted(got) == sorted(expected):
            hint = "give them in ascending order"
        else:
            hint = "sort by the partner's losses, and keep the first ones"
        return in_line(got.astype(int).tolist()), "other examples", hint

    def fresh(rng: np.random.Generator) -> tuple[Floats, float]:
        return rng.random(int(rng.integers(4, 9))).round(3), round(float(rng.uniform(0.3, 0.95)), 2)

    cases = [(np.array([0.1, 2.0, 0.3, 0.2]), 0.5), (np.array([3.0, 1.0]), 0.4), (np.array([0.5, 0.4, 0.3]), 1.0)]
    say = "picked({}, {:g})"
    return graded(say, fn, cases, _picked, explain, "{} numbers of examples", fresh=fresh, seed=seed)


def _picked(losses: Floats, keep: float) -> list[int]:
    return sorted(np.argsort(losses, kind="stable")[: max(1, int(keep * len(losses)))].tolist())


@exercise
def suspects(fn: Callable[[Any], Sequence[int]], *, found: float = 0.7, right: float = 0.7) -> Passed:
    """The puzzle: fn(dataset) → the examples whose labels are wrong, of digits of which a fifth is mislabelled.

    At least a share `found` of the wrong ones has to be among them, and at least a share `right` of them be wrong.
    """
    given, wrong_ones = _mislabelled()
    call = "suspects(digits with wrong labels)"
    got = answer_of(call, fn, given)
    try:
        named = {int(number) for number in got}
    except (TypeError, ValueError):
        raise CheckFailed(f"{call} gave {in_line(got)}: give the numbers of the examples.") from None
    if not named or not named <= set(range(len(given))):
        raise wrong(call, f"{len(named)} numbers", f"numbers from 0 to {len(given) - 1}", "number the examples from 0")
    hits = len(named & wrong_ones)
    if hits < right * len(named):
        hint = "name fewer: those whose label the model believes least"
        raise wrong(call, f"{len(named)} examples, {hits / len(named):.0%} of them wrong", f"{right:.0%} of them", hint)
    if hits < found * len(wrong_ones):
        hint = "name more of them, or let a model look that has not yet learnt the wrong labels by heart"
        raise wrong(call, f"{hits / len(wrong_ones):.0%} of the wrong labels", f"at least {found:.0%}", hint)
    return Passed("suspects", f"at least {found:.0%} of the wrong labels found, and at least {right:.0%} right")


def _mislabelled() -> tuple[Any, set[int]]:
    from labkit.data import load, noisy

    clean = load("digits")
    given = noisy(clean, 0.2, seed=7)
    return given, set(np.flatnonzero((given.y != clean.y).numpy()).tolist())
