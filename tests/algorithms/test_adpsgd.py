"""ADPSGD: what two peers make of each other on worked numbers, its limits, and what is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.algorithms import ADPSGD, AllReduce, Independent
from labkit.errors import ExchangeError, SettingError
from tests.engines.experiments import MOMENTUM, SGD, difference, parameters, result
from tests.engines.made_for_asynchrony import STILL, UNIT, FromApart, Number

UNEVEN = {"speeds": [1.0, 3.0, 0.6, 1.7, 1.1], "step_seconds": 1.0}


# -- the formula


def test_two_peers_on_worked_numbers():
    """η = 1 and ∇ℓ = 1: 0 steps (−1, 0), 1 steps (−½, −3/2); 0 again (−2, −1), 1 again (−3/2, −5/2)."""
    first, second = (result(None, ADPSGD(), Number, rounds=rounds, **UNIT) for rounds in (1, 2))
    assert parameters(first).flatten().tolist() == [-0.5, -1.5]
    assert parameters(second).flatten().tolist() == [-1.5, -2.5]
    assert second.staleness.tolist() == [[0, 1], [1, 1]]


def test_the_step_is_that_of_the_gradient_before_the_others_came():
    """Peer 1's gradient is 2w at its start, w = 1, although peer 0 has averaged with it before it steps."""
    steps = {"optimizer": partial(torch.optim.SGD, lr=0.25), "loss": lambda logits, _: logits.square().mean()}
    models = [Number(), Number()]
    with torch.no_grad():
        models[0].w.fill_(3.0)
        models[1].w.fill_(1.0)
    history = result(None, ADPSGD(), models, rounds=1, **steps)
    # 0: (3+1)/2 − ¼·6 = ½, 1 has 2;  then 1: (½+2)/2 − ¼·2 = ¾, 0 has 5/4
    assert parameters(history).flatten().tolist() == pytest.approx([1.25, 0.75])


# -- limits


def test_the_mean_of_the_models_after_everybodys_first_step_is_that_of_all_reduce():
    averaged, reduced = (result(None, it, peers=5, rounds=1) for it in (ADPSGD("complete"), AllReduce()))
    assert (parameters(averaged).mean(0) - parameters(reduced)[0]).abs().max() < 1e-6


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM], ids=["sgd", "momentum"])
@pytest.mark.parametrize("on", [lk.Lockstep, lk.Simulator])
def test_without_neighbours_peers_are_independent(on, optimizer):
    runs = [result(on(), it, peers=5, optimizer=optimizer) for it in (ADPSGD(np.eye(5)), Independent())]
    assert difference(*runs) < 1e-5
    assert runs[0].bytes == 0


@pytest.mark.parametrize("name", ["ring", "complete"])
def test_averaging_alone_keeps_the_mean_and_brings_the_models_together(name):
    begun, ended = (
        parameters(result(lk.Simulator(**UNEVEN), FromApart(name), peers=5, rounds=rounds, optimizer=STILL))
        for rounds in (1, 30)
    )
    assert (begun.mean(0) - ended.mean(0)).abs().max() < 1e-6
    assert ended.std(0).max() < 1e-4 < 1e-2 < begun.std(0).max()


@pytest.mark.parametrize("speeds", [[1.0, 1.0], [1.0, 2.7]], ids=["even", "uneven"])
@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_two_peers_are_one_step_apart_and_their_mean_takes_half_of_each_step(speeds, rounds):
    """xᵢ = x̄ + u/2 and xⱼ = x̄ − u/2 after i has met j; with η = 1 and ∇ℓ = 1 all 2·rounds steps u are −1."""
    on = lk.Simulator(speeds=speeds, step_seconds=1.0)
    one, other = parameters(result(on, ADPSGD(), Number, peers=2, rounds=rounds, **UNIT)).flatten().tolist()
    assert abs(one - other) == pytest.approx(1.0)
    assert (one + other) / 2 == pytest.approx(-rounds)


# -- it learns


@pytest.mark.parametrize("name", ["ring", "complete"])
def test_it_converges_on_digits_with_fast_and_slow_peers(name):
    fast = partial(torch.optim.SGD, lr=0.5)
    history = result(lk.Simulator(**UNEVEN), ADPSGD(name), peers=5, rounds=150, optimizer=fast)
    assert min(history.final.accuracies) > 0.88
    assert history.final.accuracy > 0.9


# -- what is refused


def test_a_topology_that_does_not_fit_is_refused_before_anything_runs():
    with pytest.raises(ExchangeError, match="joins 5 peers, but 4 take part"):
        result(None, ADPSGD(np.eye(5)), peers=4)
    with pytest.raises(SettingError, match="'circle' is no topology: give one of ring"):
        result(None, ADPSGD("circle"))
    with pytest.raises(SettingError, match="not doubly stochastic"):
        ADPSGD([[1.0, 0.0], [1.0, 0.0]])
