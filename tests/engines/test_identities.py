"""Limit identities: what an algorithm becomes when one of its settings goes to its limit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce, Independent, LocalSGD
from labkit.data import batches
from tests.engines.experiments import MOMENTUM, SGD, difference, mlp, parameters, result


@pytest.mark.parametrize("peers", [2, 4])
@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM], ids=["sgd", "momentum"])
def test_all_reduce_on_n_peers_is_one_process_on_the_joined_batch(peers, optimizer):
    digits, batch_size, rounds, seed = lk.data.load("digits"), 16, 8, 3
    history = result(None, AllReduce(), peers=peers, optimizer=optimizer, rounds=rounds)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = mlp()
    alone = optimizer(model.parameters())
    shards = digits.shards(peers, seed=seed)
    streams = [batches(shards.indices[k], batch_size, seed, k) for k in range(peers)]
    for _ in range(rounds):
        joined = torch.cat([torch.from_numpy(next(stream)) for stream in streams])
        alone.zero_grad()
        nn.functional.cross_entropy(model(digits.x[joined]), digits.y[joined]).backward()
        alone.step()

    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert (parameters(history) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
def test_local_sgd_every_step_is_all_reduce_for_plain_sgd(on):
    runs = [result(on, algorithm, peers=4, rounds=10) for algorithm in (LocalSGD(every=1), AllReduce())]
    assert (parameters(runs[0]) - parameters(runs[1])).abs().max() < 1e-5


def test_local_sgd_every_step_is_all_reduce_on_real_workers(lab):
    runs = [result(lab, algorithm, rounds=10) for algorithm in (LocalSGD(every=1), AllReduce())]
    assert (parameters(runs[0]) - parameters(runs[1])).abs().max() < 1e-5


def test_local_sgd_every_step_is_not_all_reduce_with_adam():
    """The identity is one of plain SGD: Adam's step is not linear in the gradient."""
    adam = lambda params: torch.optim.Adam(params, lr=1e-2)  # noqa: E731
    runs = [result(None, algorithm, optimizer=adam, rounds=10) for algorithm in (LocalSGD(every=1), AllReduce())]
    assert (parameters(runs[0]) - parameters(runs[1])).abs().max() > 1e-4


@pytest.mark.parametrize("algorithm", [AllReduce(), LocalSGD(every=1), Independent()], ids=repr)
def test_one_peer_alone_is_plain_training(algorithm):
    runs = [result(None, algorithm, peers=1), result(lk.Lockstep(), Independent(), peers=1)]
    assert difference(*runs) < 1e-5


def test_local_sgd_sends_one_message_where_all_reduce_sends_h():
    history = [result(None, a, rounds=r) for a, r in ((AllReduce(), 16), (LocalSGD(every=8), 2))]
    assert history[0].bytes == pytest.approx(8 * history[1].bytes)
