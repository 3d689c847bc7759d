"""Exercises on what messages give away, and on peers that lie."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from labkit.check.answers import Part, Passed, answer_of, exercise, graded, verdict, wrong
from labkit.checks import Floats
from labkit.errors import CheckFailed, SettingError


@exercise
def reconstruct(fn: Callable[[Floats, Floats], Any], seed: int | None = None) -> Passed:
    """fn(weight_slopes, bias_slopes) → the picture [D] whose gradient this is, of a linear layer of C classes: slopes
    [C, D] and [C], of one example."""

    def explain(got: Floats, expected: Floats, slopes: Floats, bias: Floats) -> tuple[str, str, str]:
        if np.allclose(got, slopes.sum(axis=0) / bias.sum()):
            hint = "the slopes of all classes add up to zero: take one class, not the sum"
        elif any(np.allclose(got, row) for row in slopes):
            hint = "this row is the picture times a number, and that number is the slope of the same class's bias"
        elif any(np.allclose(got, -row / b) for row, b in zip(slopes, bias, strict=True)):
            hint = "the sign is wrong: weight and bias have the same factor"
        else:
            hint = "row k is (pₖ − yₖ)·x, and bias k is (pₖ − yₖ)"
        return f"{got[:3].round(3).tolist()} …", "the picture", hint

    def one(rng: np.random.Generator) -> tuple[Floats, Floats]:
        p, y = rng.dirichlet(np.ones(4)), np.eye(4)[rng.integers(4)]
        return np.outer(p - y, rng.random(6)), p - y

    rng = np.random.default_rng(0)
    say = "reconstruct(slopes, bias)"
    cases = [one(rng) for _ in range(3)]
    return graded(say, fn, cases, lambda s, b: s[0] / b[0], explain, "a picture of {} pixels", fresh=one, seed=seed)


@exercise
def clip(fn: Callable[[Floats, float], Any], seed: int | None = None) -> Passed:
    """fn(x, bound) → x, shortened to the length `bound` if it is longer: x · min(1, C/‖x‖₂)."""

    def explain(got: Floats, expected: Floats, x: Floats, bound: float) -> tuple[str, str, str]:
        if np.allclose(got, np.clip(x, -bound, bound)):
            hint = "this bounds every number; the length of the whole vector is to be bounded"
        elif np.linalg.norm(x) <= bound:
            hint = "a vector that is short enough stays as it is"
        else:
            hint = "keep the direction, and make the length equal to the bound"
        return f"a vector of length {np.linalg.norm(got):.3g}", f"one of length {np.linalg.norm(expected):.3g}", hint

    def fresh(rng: np.random.Generator) -> tuple[Floats, float]:
        return rng.normal(size=4).round(3), round(float(rng.uniform(0.3, 4.0)), 2)

    cases = [(np.array([3.0, 4.0]), 1.0), (np.array([0.3, 0.4]), 1.0), (np.array([0.0, 0.0]), 2.0)]
    return graded("clip({}, {:g})", fn, cases, _clipped, explain, "a vector of {} numbers", fresh=fresh, seed=seed)


def _clipped(x: Floats, bound: float) -> Floats:
    return np.asarray(x * (bound / max(float(np.linalg.norm(x)), bound)))


@exercise
def defence(fn: Callable[[Any], Any], *, accuracy: float = 0.8) -> Passed:
    """The puzzle: fn(algorithm) → that algorithm with a defence around it, which learns although 2 of 7 peers lie.

    They send ten times the opposite of their gradient, or noise of that size; nobody tells which of them.
    """
    parts = [
        Part("two that send the opposite", [partial(_learns, fn, "flip", (0, 1), accuracy)]),
        Part("two that send noise", [partial(_learns, fn, "noise", (3, 5), accuracy)]),
        Part("two that always say the same", [partial(_learns, fn, _alike, (2, 6), accuracy)]),
    ]
    return verdict("defence", parts)


def _alike(x: Any) -> Any:
    return x * 0 + 3.0


def _learns(fn: Callable[[Any], Any], attack: Any, bad: tuple[int, ...], accuracy: float) -> None:
    import torch

    from labkit.algorithms import AllReduce, Byzantine
    from labkit.data import load
    from labkit.training.train import train

    named = attack if isinstance(attack, str) else "alike"
    call = f"a training in which peers {bad} attack by {named}"
    attacked = Byzantine(AllReduce(), peers=bad, attack=attack, scale=10.0)
    defended = answer_of("defend(algorithm)", fn, attacked)
    within = defended
    while within != attacked and hasattr(within, "algorithm"):
        within = within.algorithm
    if within != attacked and hasattr(defended, "round"):
        hint = "leave the algorithm that you are given as it is, and put the defence around it"
        raise wrong("defend(algorithm)", "a training without them", "one in which the two liars take part", hint)
    sgd = partial(torch.optim.SGD, lr=0.2)
    settings: dict[str, Any] = {"peers": 7, "rounds": 60, "batch_size": 16, "optimizer": sgd, "evaluate_every": 60}
    try:
        reached = train(_linear, load("digits"), defended, **settings).result().final.accuracy or 0.0
    except SettingError as error:
        raise CheckFailed(str(error)) from None
    if reached < accuracy:
        hint = "a mean follows whoever shouts: put a rule in its place that is no mean"
        if defended != attacked:
            hint = "two of seven can move this rule: take one that they cannot, whichever two they are"
        raise wrong(call, f"{reached:.0%} on unseen digits", f"at least {accuracy:.0%}", hint)


def _linear() -> Any:
    import torch

    return torch.nn.Linear(64, 10)
