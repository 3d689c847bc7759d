"""The three engines drive the same generator to the same result, for every algorithm, model, optimiser and seed.

A new algorithm is one line in ALGORITHMS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

import labkit as lk
from labkit.algorithms import (
    EASGD,
    SCAFFOLD,
    AllReduce,
    Codistillation,
    CoTeaching,
    CoTeachingPlus,
    DiLoCo,
    Distillation,
    Ensemble,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDF,
    FedDyn,
    FedMD,
    FedNova,
    FedProx,
    FedYogi,
    Gossip,
    Independent,
    LocalSGD,
    Mutual,
    PostLocalSGD,
)
from labkit.algorithms.clients import Clients
from labkit.engines.cluster import Cluster
from labkit.exchange import Gather, Mean
from tests.engines.experiments import (
    ADAM,
    MOMENTUM,
    SGD,
    convolution,
    difference,
    every_position,
    language_model,
    mlp,
    parameters,
    result,
    sequences,
)

TOLERANCE = 1e-5
DIGITS, PUBLIC = lk.data.load("digits").hold_out(0.2)


def teacher():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return mlp()


@dataclass(frozen=True)
class TowardsEveryone:
    """A weighted mean and a gather in one round: each peer also pulls its logits towards everyone's average."""

    def round(self, peer, batches):
        inputs, _ = batch = next(batches)
        everyone = yield Gather(peer.logits(inputs).detach())  # [n, B, C]
        pull = (peer.logits(inputs) - everyone.mean(-3)).square().mean((-2, -1))
        peer.step(peer.loss(batch) + pull)
        peer.params = yield Mean(peer.params, weight=peer.examples)


ALGORITHMS = [
    Independent(),
    Independent(every=3),
    Ensemble(every=2),
    AllReduce(),
    AllReduce(form="ring"),
    AllReduce(form="tree"),
    LocalSGD(every=1),
    LocalSGD(every=4),
    PostLocalSGD(every=2, warmup=3),
    DiLoCo(every=3),
    DiLoCo(every=2, nesterov=False),
    EASGD(every=2),
    FedAvg(every=3),
    FedAvg(epochs=1),
    FedProx(every=3),
    FedAvgM(every=3),
    FedAdam(every=3),
    FedYogi(every=3),
    FedNova(epochs=1),
    FedNova(epochs=1, momentum=0.5),
    FedDyn(every=3),
    SCAFFOLD(every=3),
    SCAFFOLD(epochs=1),
    Gossip(),
    Gossip("complete", every=2),
    Mutual(),
    Distillation(teacher()),
    Codistillation(every=3),
    CoTeaching(ramp=1),
    CoTeachingPlus(ramp=1, warmup=0),
    FedMD(every=2, public=2, warmup=2),
    FedDF(every=3, public=2),
    TowardsEveryone(),
]
CLIENTS = [replace(algorithm, participation=0.3) for algorithm in ALGORITHMS if isinstance(algorithm, Clients)]


def run(on, algorithm, **settings):
    """A short training; where passes over shards count, shards are of different sizes."""
    skew = lk.data.Dirichlet(0.5, least=16) if getattr(algorithm, "epochs", None) else None
    settings = {"rounds": 5, "optimizer": SGD, "seed": 3, "batch_size": 16, "shards": skew, "public": PUBLIC} | settings
    return lk.train(settings.pop("model", mlp), DIGITS, algorithm, on=on, **settings).result(timeout=60)


def require_agreement(*histories):
    """The same parameters, losses and bytes; the same accuracy, but for one example on the edge."""
    first = histories[0]
    for other in histories[1:]:
        assert difference(first, other) < TOLERANCE
        for one, same in zip(first.final.accuracies, other.final.accuracies, strict=True):
            assert abs(one - same) < 1.5 / len(DIGITS.test_y)
        assert [row.peers for row in first.rows] == [row.peers for row in other.rows]


def five(algorithm):
    """Peers on two workers: five, in blocks of three and two, or six, the third and fourth of which are a pair."""
    return 6 if isinstance(algorithm, CoTeaching) else 5


# -- every algorithm


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_lockstep_and_stacked_agree(algorithm, seed):
    runs = [run(on, algorithm, peers=6, seed=seed) for on in (lk.Lockstep(), lk.Simulator())]
    require_agreement(*runs)
    assert runs[0].bytes == pytest.approx(runs[1].bytes)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_stacks_of_any_size_agree(algorithm):
    require_agreement(*(run(lk.Simulator(block=block), algorithm, peers=6, rounds=4) for block in (None, 4, 1)))


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_cluster_and_lockstep_agree_with_one_peer_per_worker_and_the_ledger_is_the_formula(lab, algorithm):
    measured, formula = (run(on, algorithm, peers=2) for on in (lab, lk.Lockstep()))
    require_agreement(measured, formula)
    of_clients = isinstance(algorithm, Clients)  # whose traffic with a server is not what workers send each other
    assert measured.ledger == ("formula" if of_clients else "measured") and formula.ledger == "formula"
    assert measured.bytes == pytest.approx(formula.bytes)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_cluster_and_lockstep_agree_with_uneven_blocks_of_peers_on_the_workers(lab, algorithm):
    require_agreement(*(run(on, algorithm, peers=five(algorithm)) for on in (lab, lk.Lockstep())))


# -- who takes part


@pytest.mark.parametrize("algorithm", CLIENTS, ids=repr)
def test_engines_agree_where_three_of_ten_clients_take_part(algorithm):
    runs = [run(on, algorithm, peers=10) for on in (lk.Lockstep(), lk.Simulator(), lk.Simulator(block=2))]
    require_agreement(*runs)
    assert runs[0].bytes == pytest.approx(runs[1].bytes)


@pytest.mark.parametrize("algorithm", CLIENTS, ids=repr)
def test_clients_on_real_workers_agree_even_where_a_worker_has_none_in_a_round(lab, algorithm):
    runs = [run(on, algorithm, peers=6) for on in (lk.Lockstep(), lab)]  # two of six
    assert any(max(row.peers) < 3 or min(row.peers) > 2 for row in runs[0].rows), "every round had clients on both"
    require_agreement(*runs)


@pytest.mark.parametrize("algorithm", [FedAvg(2, participation=0.5), SCAFFOLD(2, participation=0.5)], ids=repr)
def test_one_of_two_clients_on_two_workers(lab, algorithm):
    require_agreement(*(run(on, algorithm, peers=2) for on in (lk.Lockstep(), lab)))


# -- peers that differ: 𝓜 = ∪ 𝓜ᵢ, 𝓟 = ∪ 𝓟ᵢ, 𝓞 = ∪ 𝓞ᵢ

MIXED = {
    "independent": [Independent()] * 4,
    "ensemble": [Ensemble()] * 4,
    "mutual": [Mutual(weight) for weight in (1.0, 0.5, 1.0, 0.0)],
    "distillation": [Distillation(teacher(), temperature=t) for t in (1.0, 2.0, 4.0, 8.0)],
    "independent or distilled": [Independent(), Distillation(teacher()), Independent(), Distillation(teacher())],
    "coteaching": [CoTeaching(forget, ramp=1) for forget in (0.2, 0.2, 0.4, 0.4)],
    "coteaching+": [CoTeachingPlus(0.2, 1, warmup=0)] * 4,
    "fedmd": [FedMD(every=2, public=2, warmup=1)] * 4,
}
MODELS = [mlp, convolution, convolution, mlp]
OPTIMIZERS = [SGD, MOMENTUM, partial(torch.optim.SGD, lr=0.02), SGD]


@pytest.mark.parametrize("algorithms", MIXED.values(), ids=MIXED)
def test_engines_agree_where_architectures_strategies_optimisers_and_learning_rates_differ(lab, algorithms):
    mixed = {"model": MODELS, "optimizer": OPTIMIZERS, "rounds": 4}
    runs = [run(on, algorithms, **mixed) for on in (lk.Lockstep(), lk.Simulator(), lab)]
    for other in runs[1:]:
        for one, same in zip(runs[0].models, other.models, strict=True):
            vectors = [torch.nn.utils.parameters_to_vector(it.parameters()) for it in (one, same)]
            torch.testing.assert_close(*vectors, rtol=0, atol=TOLERANCE)
        for row, same in zip(runs[0].rows, other.rows, strict=True):
            assert row.losses == pytest.approx(same.losses, abs=TOLERANCE)
    assert runs[0].bytes == pytest.approx(runs[1].bytes)


# -- sequences: outputs [B, T, C]

SEQUENCES = [
    AllReduce(),
    Ensemble(),
    Mutual(),
    Codistillation(every=3),
    CoTeaching(ramp=1),
    CoTeachingPlus(ramp=1, warmup=0),
    FedMD(every=2, public=2, warmup=2),
    FedDF(every=3, public=2),
]


@pytest.mark.parametrize("algorithm", [*SEQUENCES, Distillation(language_model())], ids=repr)
def test_engines_agree_on_models_that_predict_at_every_position_of_a_sequence(lab, algorithm):
    text, public = sequences().hold_out(0.2)
    settings = {"peers": 4, "rounds": 5, "batch_size": 16, "seed": 3, "optimizer": ADAM, "loss": every_position}
    runs = [
        lk.train(language_model, text, algorithm, on=on, public=public, **settings).result(60)
        for on in (lk.Lockstep(), lk.Simulator(), lab)
    ]
    for other in runs[1:]:
        assert difference(runs[0], other) < TOLERANCE
        assert runs[0].final.accuracies == pytest.approx(other.final.accuracies, abs=1.5 / text.test_y.numel())
    assert runs[0].bytes == pytest.approx(runs[1].bytes)


# -- other models and optimisers


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM], ids=["momentum", "adam"])
@pytest.mark.parametrize("model", [mlp, convolution])
def test_lockstep_and_stacked_agree_for_other_models_and_optimisers(optimizer, model):
    runs = [
        result(engine, LocalSGD(every=2), model, peers=3, optimizer=optimizer, rounds=4)
        for engine in (lk.Lockstep(), lk.Simulator())
    ]
    assert difference(*runs) < TOLERANCE


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM], ids=["sgd", "momentum", "adam"])
def test_distributed_data_parallel_does_what_the_generator_says(lab, optimizer):
    """On workers AllReduce is torch's DDP; its specification is the generator."""
    native, generator = (
        result(Cluster(lab, ddp=ddp), AllReduce(), convolution, optimizer=optimizer) for ddp in (lk.DDP(), None)
    )
    assert difference(native, generator) < TOLERANCE
    assert native.bytes == pytest.approx(generator.bytes)


def test_a_list_of_one_strategy_for_each_peer_is_not_taken_for_distributed_data_parallel(lab):
    lists = [AllReduce(), LocalSGD(every=1)]
    assert difference(*(result(on, lists, optimizer=MOMENTUM) for on in (lk.Lockstep(), lab))) < TOLERANCE


# -- what holds for all of them


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
