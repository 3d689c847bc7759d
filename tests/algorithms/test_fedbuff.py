"""FedBuff: the buffer on worked numbers, its limits, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import labkit as lk
from labkit.algorithms import FedBuff, LocalSGD, ParameterServer
from labkit.errors import SettingError
from tests.engines.experiments import MOMENTUM, SGD, difference, parameters, result

UNEVEN = {"speeds": [1.0, 3.0, 0.6, 1.7], "step_seconds": 1.0}


def server(**settings):
    return FedBuff(**settings).server({"w": torch.tensor([10.0])}, SGD, 4)


def push(it, change, staleness=0):
    it.take({"w": torch.tensor([change])}, staleness)
    return it.weights["w"].item()


# -- the formula


def test_the_server_moves_by_the_mean_of_a_full_buffer_and_not_before():
    it = server(buffer=3)
    assert [push(it, 1.0), push(it, 2.0)] == [10.0, 10.0] and it.version == 0
    assert push(it, 6.0) == pytest.approx(7.0) and it.version == 1
    assert [push(it, 3.0), push(it, 3.0), push(it, 3.0)] == pytest.approx([7.0, 7.0, 4.0])


def test_the_servers_learning_rate_scales_the_mean():
    assert push(server(buffer=1, server_lr=0.5), 4.0) == pytest.approx(8.0)


def test_staleness_scaling_divides_by_the_root_of_one_and_the_staleness():
    it = server(buffer=2, staleness_scaling=True)
    push(it, 4.0, staleness=3)  # counts 4/√4
    assert push(it, 6.0, staleness=8) == pytest.approx(10.0 - (2.0 + 2.0) / 2)


# -- limits


@pytest.mark.parametrize("on", [lk.Lockstep, lk.Simulator])
@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM], ids=["sgd", "momentum"])
def test_under_bsp_with_room_for_all_it_is_local_sgd(on, optimizer):
    buffered = result(on(**UNEVEN), FedBuff(4, 3, policy=lk.BSP()), peers=4, optimizer=optimizer)
    averaged = result(on(), LocalSGD(3), peers=4, optimizer=optimizer)
    assert difference(buffered, averaged) < 1e-5


def test_with_room_for_all_the_first_move_of_equally_fast_peers_is_that_of_local_sgd():
    runs = [result(None, it, peers=4, rounds=1) for it in (FedBuff(4, 3), LocalSGD(3))]
    assert difference(*runs) < 1e-5


@pytest.mark.parametrize("policy", [lk.SSP(1), lk.ASP()], ids=repr)
def test_without_a_buffer_or_local_steps_it_is_a_parameter_server(policy):
    algorithms = FedBuff(buffer=1, every=1, server_lr=0.25, policy=policy), ParameterServer(policy)
    runs = [result(lk.Simulator(**UNEVEN), it, peers=4, rounds=10) for it in algorithms]
    assert difference(*runs) < 1e-5
    assert (runs[0].staleness == runs[1].staleness).all()


def test_staleness_counts_the_servers_moves():
    history = result(lk.Simulator(), FedBuff(buffer=4, every=1), peers=4, rounds=6)
    assert set(history.staleness[:, 1:].ravel().tolist()) <= {0, 1}


# -- it learns


def test_it_converges_on_digits_with_fast_and_slow_clients():
    on = lk.Simulator(**UNEVEN)
    history = result(on, FedBuff(3, 8, staleness_scaling=True), peers=4, rounds=30)
    assert history.final.accuracy > 0.9
    assert (parameters(history)[0] == parameters(history)[3]).all()


# -- what is refused


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"buffer": 0}, "buffer is 0; give at least 1"),
        ({"every": 2.5}, "every is 2.5, which is no whole number"),
        ({"server_lr": 0}, "server_lr is 0; give a number above 0"),
        ({"server_lr": float("nan")}, "server_lr is nan; give a number above 0"),
        ({"policy": "ASP"}, "does not say who waits"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(SettingError, match=sentence):
        FedBuff(**settings)


def test_plain_sgd_with_no_learning_rate_moves_nothing():
    still = result(None, FedBuff(2, 2), optimizer=partial(torch.optim.SGD, lr=0.0))
    start = result(None, FedBuff(2, 2), optimizer=partial(torch.optim.SGD, lr=0.0), rounds=1)
    assert torch.equal(parameters(still), parameters(start))
