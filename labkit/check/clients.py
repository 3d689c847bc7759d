"""Exercises on clients that hold different data and take different numbers of steps."""

from __future__ import annotations

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
    fresh_cases,
    graded,
    listed,
    near,
    numbers_of,
    verdict,
    wrong,
)
from labkit.checks import Floats


@exercise
def fedavg_end(fn: Callable[[list[float], list[int], float], float], *, seed: int | None = None) -> Passed:
    """fn(wishes, steps, rate) → where FedAvg ends if client k's loss is (x − wishes[k])²/2 and it takes steps[k] steps
    of gradient descent at this rate in every round."""

    def explain(got: float, expected: float, wishes: list[float], steps: list[int], rate: float) -> Any:
        if near(got, np.mean(wishes)):
            hint = "this is where it should end; who takes more steps pulls more"
        elif near(got, np.average(wishes, weights=steps)):
            hint = "this is the limit of small rates; τ steps go 1 − (1 − η)^τ of the way"
        else:
            hint = "x stands still when the clients' changes (1 − (1 − η)^τₖ)(aₖ − x) add up to zero: solve for x"
        return f"{got:.4g}", "another place", hint

    cases = [([0.0, 1.0], [1, 4], 0.1), ([0.0, 1.0], [3, 3], 0.2), ([2.0, -1.0, 5.0], [1, 2, 8], 0.3),
             ([1.0, 4.0], [10, 1], 0.01)]  # fmt: skip
    return graded("fedavg_end({}, {}, {:g})", fn, cases, _end, explain, fresh=_houses, seed=seed)


def _houses(rng: np.random.Generator) -> tuple[list[float], list[int], float]:
    n = int(rng.integers(2, 6))
    return (
        rng.normal(size=n).round(2).tolist(),
        rng.integers(1, 20, n).tolist(),
        round(float(rng.uniform(0.05, 0.4)), 2),
    )


def _end(wishes: Sequence[float], steps: Sequence[int], rate: float) -> float:
    return float(np.average(wishes, weights=1 - (1 - rate) ** np.array(steps)))


@exercise
def fednova_step(fn: Callable[[list[Floats], list[int], list[float]], Any], *, seed: int | None = None) -> Passed:
    """fn(changes, steps, shares) → FedNova's joint change, from each client's change [D], its steps and its share of
    all examples (which add up to 1)."""

    def explain(got: Floats, expected: Floats, changes: list[Floats], steps: list[int], shares: list[float]) -> Any:
        plain = np.average(changes, axis=0, weights=shares)
        per_step = sum(p * c / t for p, c, t in zip(shares, changes, steps, strict=True))
        if near(got, plain):
            hint = "this is FedAvg's: divide each change by the steps that made it"
        elif near(got, per_step):
            hint = "this is the mean change of one step; go τ_eff = Σ pₖ τₖ such steps"
        else:
            hint = "the direction is Σ pₖ Δₖ/τₖ, its length τ_eff = Σ pₖ τₖ"
        return listed(got), "another change", hint

    rng = np.random.default_rng(0)
    settings = [([1, 4], [0.5, 0.5]), ([3, 3], [0.2, 0.8]), ([1, 2, 10], [0.5, 0.3, 0.2])]
    cases = [([rng.normal(size=2) for _ in steps], steps, shares) for steps, shares in settings]
    say, wanted = "fednova_step(changes, {1}, {2})", "one change of {} numbers"
    return graded(say, fn, cases, _nova, explain, wanted, fresh=_round, seed=seed)


def _round(rng: np.random.Generator) -> tuple[list[Floats], list[int], list[float]]:
    n = int(rng.integers(2, 6))
    return list(rng.normal(size=(n, 2))), rng.integers(1, 20, n).tolist(), rng.dirichlet(np.ones(n)).round(6).tolist()


def _nova(changes: list[Floats], steps: list[int], shares: list[float]) -> Floats:
    direction = sum(p * c / t for p, c, t in zip(shares, changes, steps, strict=True))
    return np.asarray(np.dot(shares, steps) * direction)


@exercise
def fair_rates(fn: Callable[[list[int]], Sequence[float]], *, seed: int | None = None) -> Passed:
    """The puzzle: fn(steps) → a learning rate for each client, above 0 and below 1, with which plain FedAvg ends at the
    mean of all wishes."""

    def trial(steps: list[int]) -> None:
        call = f"fair_rates({steps})"
        rates = numbers_of(call, answer_of(call, fn, list(steps)), (len(steps),), f"{len(steps)} learning rates")
        if not ((rates > 0) & (rates < 1)).all():
            raise wrong(call, listed(rates), "rates above 0 and below 1", "who takes no step learns nothing")
        pull = 1 - (1 - rates) ** np.array(steps)
        if not np.allclose(pull, pull[0], rtol=0.01):
            most, least = int(pull.argmax()), int(pull.argmin())
            hint = f"client {most} comes {pull[most]:.0%} of its way in a round, client {least} {pull[least]:.0%}"
            raise wrong(call, listed(rates), "clients that come equally far", hint)

    seed = drawn(seed)
    cases = [[1, 4], [2, 2], [1, 2, 8], [5, 50]]
    cases += fresh_cases(lambda rng: rng.integers(1, 50, rng.integers(2, 6)).tolist(), seed)
    return verdict("fair_rates", [Part("fair_rates", [partial(trial, steps) for steps in cases])], seed)
