"""The three engines drive the same generator to the same result, for every algorithm, model, optimiser and seed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import labkit as lk
from labkit.algorithms import AllReduce, Independent, LocalSGD
from labkit.engines.cluster import Cluster
from labkit.exchange import Gather, Mean
from tests.engines.experiments import ADAM, MOMENTUM, SGD, convolution, difference, mlp, parameters, result

TOLERANCE = 1e-5


@dataclass(frozen=True)
class TowardsEveryone:
    """A weighted mean and a gather in one round: each peer also pulls its logits towards everyone's average."""

    def round(self, peer, batches):
        inputs, _ = batch = next(batches)
        everyone = yield Gather(peer.logits(inputs).detach())  # [n, B, C]
        pull = (peer.logits(inputs) - everyone.mean(-3)).square().mean((-2, -1))
        peer.step(peer.loss(batch) + pull)
        peer.params = yield Mean(peer.params, weight=peer.examples)


ALGORITHMS = [Independent(), Independent(every=3), AllReduce(), LocalSGD(every=1), LocalSGD(every=4)]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
@pytest.mark.parametrize("seed", [0, 7])
def test_lockstep_and_stacked_agree(algorithm, seed):
    runs = [result(engine, algorithm, peers=5, seed=seed) for engine in (lk.Lockstep(), lk.Simulator())]
    assert difference(*runs) < TOLERANCE


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM], ids=["momentum", "adam"])
@pytest.mark.parametrize("model", [mlp, convolution])
def test_lockstep_and_stacked_agree_for_other_models_and_optimisers(optimizer, model):
    runs = [
        result(engine, LocalSGD(every=2), model, peers=3, optimizer=optimizer, rounds=4)
        for engine in (lk.Lockstep(), lk.Simulator())
    ]
    assert difference(*runs) < TOLERANCE


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
@pytest.mark.parametrize("seed", [0, 7])
def test_cluster_and_lockstep_agree_with_one_peer_per_worker(lab, algorithm, seed):
    runs = [result(on, algorithm, seed=seed) for on in (lab, lk.Lockstep())]
    assert difference(*runs) < TOLERANCE


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_cluster_and_lockstep_agree_with_uneven_blocks_of_peers_on_the_workers(lab, algorithm):
    runs = [result(on, algorithm, peers=5) for on in (lab, lk.Lockstep())]
    assert difference(*runs) < TOLERANCE


@pytest.mark.parametrize("peers", [2, 5])
def test_weighted_means_and_gathers_agree_on_all_engines(lab, peers):
    runs = [result(on, TowardsEveryone(), peers=peers) for on in (lk.Lockstep(), lk.Simulator(), lab)]
    assert difference(runs[0], runs[1]) < TOLERANCE
    assert difference(runs[0], runs[2]) < TOLERANCE


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM], ids=["sgd", "momentum", "adam"])
def test_distributed_data_parallel_does_what_the_generator_says(lab, optimizer):
    """On workers AllReduce is torch's DDP; its specification is the generator."""
    native, generator = (
        result(Cluster(lab, ddp=ddp), AllReduce(), convolution, optimizer=optimizer) for ddp in (True, False)
    )
    assert difference(native, generator) < TOLERANCE
    assert native.bytes == pytest.approx(generator.bytes)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_bytes_on_the_wire_are_those_of_the_formula(lab, algorithm):
    measured, formula = result(lab, algorithm), result(lk.Simulator(), algorithm)
    assert measured.ledger == "measured" and formula.ledger == "formula"
    assert measured.bytes == pytest.approx(formula.bytes)


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
def test_same_seed_same_result_however_often_and_whatever_ran_before(on):
    first = result(on, AllReduce(), peers=3)
    torch.rand(17)
    result(on, LocalSGD(), peers=3, seed=11)
    assert difference(first, result(on, AllReduce(), peers=3)) == 0
    assert difference(first, result(on, AllReduce(), peers=3, seed=4)) > 1e-3


def test_training_leaves_the_users_random_numbers_and_model_alone():
    model = mlp()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).clone()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    result(lk.Lockstep(), AllReduce(), model)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()), before)


def test_independent_peers_differ_and_averaged_peers_are_one():
    alone, together = (result(None, algorithm, peers=3) for algorithm in (Independent(), LocalSGD(every=2)))
    assert (parameters(alone)[0] - parameters(alone)[1]).abs().max() > 1e-3
    assert (parameters(together)[0] - parameters(together)[1]).abs().max() == 0
