"""The laws of staleness against what they speak of: descent by old gradients, and peers that push to a server."""

from __future__ import annotations

import math

import pytest

import labkit as lk
from labkit.costs.staleness import stable_rate, stalest
from labkit.errors import SettingError


def descends(rate: float, staleness: int, steps: int = 4000) -> bool:
    """Whether w ← w − rate · w(staleness updates ago) comes to rest."""
    w = [1.0] * (staleness + 1)
    for _ in range(steps):
        w.append(w[-1] - rate * w[-1 - staleness])
        if abs(w[-1]) > 1e6:
            return False
    return abs(w[-1]) < 0.5


@pytest.mark.parametrize("staleness", [0, 1, 2, 5, 12])
def test_descent_turns_into_divergence_at_the_stable_rate(staleness: int) -> None:
    assert descends(0.97 * stable_rate(staleness), staleness)
    assert not descends(1.03 * stable_rate(staleness), staleness)


def test_the_stable_rate_falls_as_one_over_the_staleness_and_the_curvature() -> None:
    assert stable_rate(100) == pytest.approx(math.pi / 201, rel=1e-4)
    assert stable_rate(3, curvature=5) == pytest.approx(stable_rate(3) / 5)


@pytest.mark.parametrize("bound", [1, 2])
def test_peers_of_any_speed_stay_within_the_bound_and_come_near_it(bound: int) -> None:
    import torch

    clock = lk.Simulator(speeds=[1, 1, 0.05], step_seconds=1.0)
    server = lk.algorithms.ParameterServer(lk.SSP(bound))
    history = lk.train(lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), server, peers=3, rounds=12,
                       on=clock, evaluate_every=12).result()  # fmt: skip
    assert 2 * bound <= history.staleness.max() <= stalest(bound, peers=3)


@pytest.mark.parametrize(
    "make", [lambda: stalest(-1, 2), lambda: stalest(1, 0), lambda: stable_rate(-1), lambda: stable_rate(1, 0)]
)
def test_what_cannot_be_is_refused(make) -> None:
    with pytest.raises(SettingError, match=r" is .*; give a number"):
        make()
