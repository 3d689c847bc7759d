"""ParameterServer: the server's step on worked numbers, its limits, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import labkit as lk
from labkit.algorithms import AllReduce, Independent, ParameterServer
from labkit.errors import SettingError
from tests.engines.experiments import ADAM, MOMENTUM, SGD, difference, parameters, result

UNEVEN = {"speeds": [1.0, 3.0, 0.6, 1.7], "step_seconds": 1.0}


FAST = partial(torch.optim.SGD, lr=0.4)


def server(peers, optimizer=FAST, **settings):
    return ParameterServer(**settings).server({"w": torch.tensor([1.0, 2.0])}, optimizer, peers)


# -- the formula


def test_a_push_moves_the_weights_by_one_nth_of_the_learning_rate():
    it = server(4)
    it.take({"w": torch.tensor([1.0, -10.0])}, 0)
    assert it.weights["w"].tolist() == pytest.approx([0.9, 3.0])
    assert it.version == 1


def test_the_servers_momentum_is_that_of_the_runs_optimiser():
    it = server(2, partial(torch.optim.SGD, lr=0.2, momentum=0.5))
    it.take({"w": torch.tensor([1.0, 0.0])}, 0)  # v = 1, w = 1 − 0.1
    it.take({"w": torch.tensor([1.0, 0.0])}, 0)  # v = 1.5, w = 0.9 − 0.15
    assert it.weights["w"].tolist() == pytest.approx([0.75, 2.0])


@pytest.mark.parametrize(("staleness", "moved"), [(0, 0.1), (4, 0.1), (8, 0.05), (40, 0.01)])
def test_staleness_aware_gradients_weigh_one_nth_at_most_and_less_the_staler_they_are(staleness, moved):
    it = server(4, staleness_aware=True)
    it.take({"w": torch.tensor([1.0, 0.0])}, staleness)
    assert it.weights["w"].tolist() == pytest.approx([1.0 - moved, 2.0])


def test_a_server_leaves_the_weights_it_was_given_alone():
    weights = {"w": torch.ones(2)}
    ParameterServer().server(weights, SGD, 1).take({"w": torch.ones(2)}, 0)
    assert weights["w"].tolist() == [1.0, 1.0]


# -- limits


@pytest.mark.parametrize("on", [lk.Lockstep, lk.Simulator])
@pytest.mark.parametrize("clock", [{}, UNEVEN], ids=["even", "uneven"])
def test_under_bsp_it_is_all_reduce_for_plain_sgd(on, clock):
    served = result(on(**clock), ParameterServer(lk.BSP()), peers=4, rounds=8)
    reduced = result(on(), AllReduce(), peers=4, rounds=8)
    assert difference(served, reduced) < 1e-5
    assert (served.staleness == 0).all()


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM], ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("same", [(lk.SSP(0), lk.BSP()), (lk.SSP(float("inf")), lk.ASP()), (lk.SSP(100), lk.ASP())])
def test_ssp_is_bsp_without_and_asp_with_any_slack(same, optimizer):
    runs = [result(lk.Simulator(**UNEVEN), ParameterServer(it), peers=4, optimizer=optimizer) for it in same]
    assert difference(*runs) == 0
    assert (runs[0].staleness == runs[1].staleness).all()


@pytest.mark.parametrize("policy", [lk.BSP(), lk.SSP(2), lk.ASP()], ids=repr)
def test_one_peer_with_a_server_trains_alone(policy):
    runs = [result(None, it, peers=1) for it in (ParameterServer(policy), Independent())]
    assert difference(*runs) < 1e-6


def test_peers_of_one_speed_take_turns_so_that_all_gradients_are_n_minus_1_updates_old():
    history = result(lk.Simulator(), ParameterServer(), peers=4, rounds=5)
    assert (history.staleness[:, 1:] == 3).all()
    assert history.staleness[:, 0].tolist() == [0, 1, 2, 3]  # all began with the same weights


def test_staleness_awareness_changes_what_stale_gradients_do():
    plain, aware = (
        result(lk.Simulator(**UNEVEN), ParameterServer(staleness_aware=it), peers=4, rounds=20) for it in (False, True)
    )
    assert plain.staleness.max() > 4
    assert (parameters(plain) - parameters(aware)).abs().max() > 1e-4


# -- it learns


@pytest.mark.parametrize("policy", [lk.BSP(), lk.SSP(2), lk.ASP()], ids=repr)
def test_it_converges_on_digits_under_every_policy(policy):
    fast = partial(torch.optim.SGD, lr=0.5)
    history = result(lk.Simulator(**UNEVEN), ParameterServer(policy), peers=4, rounds=150, optimizer=fast)
    assert history.final.accuracy > 0.9
    assert len({tuple(torch.nn.utils.parameters_to_vector(it.parameters()).tolist()) for it in history.models}) == 1


# -- what is refused


@pytest.mark.parametrize("policy", [None, "BSP", 3, lk.BSP])
def test_what_says_nothing_about_waiting_is_refused(policy):
    with pytest.raises(SettingError, match=r"does not say who waits: give lk\.BSP\(\), lk\.SSP\(s\) or lk\.ASP\(\)"):
        ParameterServer(policy)
