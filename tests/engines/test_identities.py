"""Limit identities: what an algorithm becomes when one of its settings goes to its limit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import (
    ADPSGD,
    EASGD,
    SCAFFOLD,
    AllReduce,
    Codistillation,
    CoTeaching,
    CoTeachingPlus,
    DiLoCo,
    Distillation,
    FedAvg,
    FedAvgM,
    FedDF,
    FedDyn,
    FedMD,
    FedNova,
    FedProx,
    Gossip,
    Independent,
    LocalSGD,
    Mutual,
    PostLocalSGD,
)
from labkit.data import batches
from labkit.exchange import topologies
from tests.engines.experiments import MOMENTUM, SGD, difference, mlp, parameters, result

DIGITS = lk.data.load("digits")
EVEN = replace(DIGITS, x=DIGITS.x[:768], y=DIGITS.y[:768], source=None)
SETTINGS = {"peers": 4, "rounds": 6, "batch_size": 16, "seed": 3, "optimizer": SGD}


def apart(one, other):
    """The largest difference between the parameters of two trainings."""
    return float((parameters(one) - parameters(other)).abs().max())


def require_same(algorithms, **settings):
    """Two algorithms train to the same parameters, which are not those they began with."""
    one, other = (lk.train(mlp, EVEN, it, **(SETTINGS | settings)).result(60) for it in algorithms)
    assert apart(one, other) < 1e-5
    with torch.random.fork_rng():
        torch.manual_seed(SETTINGS["seed"])
        start = nn.utils.parameters_to_vector(mlp().parameters())
    assert (parameters(one)[0] - start).abs().max() > 1e-3


# -- one large batch


@pytest.mark.parametrize("peers", [2, 4])
@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM], ids=["sgd", "momentum"])
def test_all_reduce_on_n_peers_is_one_process_on_the_joined_batch(peers, optimizer):
    digits, batch_size, rounds, seed = DIGITS, 16, 8, 3
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
def test_one_epoch_of_a_full_batch_of_everybody_is_gradient_descent_on_all_examples(on):
    """FedSGD: McMahan et al., arXiv:1602.05629, Sec. 2."""
    full = SETTINGS | {"rounds": 5, "batch_size": 192, "on": on}
    history = lk.train(mlp, EVEN, FedAvg(epochs=1), **full).result(60)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = mlp()
    alone = SGD(model.parameters())
    for _ in range(5):
        alone.zero_grad()
        nn.functional.cross_entropy(model(EVEN.x), EVEN.y).backward()
        alone.step()
    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert (parameters(history) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("algorithm", [AllReduce(), LocalSGD(every=1), Independent(), Gossip(), FedAvg(1)], ids=repr)
def test_one_peer_alone_is_plain_training(algorithm):
    runs = [result(None, algorithm, peers=1), result(lk.Lockstep(), Independent(), peers=1)]
    assert difference(*runs) < 1e-5


# -- averages


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
def test_local_sgd_every_step_is_all_reduce_for_plain_sgd(on):
    runs = [result(on, algorithm, peers=4, rounds=10) for algorithm in (LocalSGD(every=1), AllReduce())]
    assert apart(*runs) < 1e-5


def test_local_sgd_every_step_is_all_reduce_on_real_workers(lab):
    runs = [result(lab, algorithm, rounds=10) for algorithm in (LocalSGD(every=1), AllReduce())]
    assert apart(*runs) < 1e-5


def test_local_sgd_every_step_is_not_all_reduce_with_adam():
    """The identity is one of plain SGD: Adam's step is not linear in the gradient."""
    adam = partial(torch.optim.Adam, lr=1e-2)
    runs = [result(None, algorithm, optimizer=adam, rounds=10) for algorithm in (LocalSGD(every=1), AllReduce())]
    assert apart(*runs) > 1e-4


def test_local_sgd_sends_one_message_where_all_reduce_sends_h():
    history = [result(None, a, rounds=r) for a, r in ((AllReduce(), 16), (LocalSGD(every=8), 2))]
    assert history[0].bytes == pytest.approx(8 * history[1].bytes)


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM], ids=["sgd", "momentum"])
def test_post_local_sgd_is_all_reduce_while_it_warms_up_and_local_sgd_without(optimizer):
    long, none = (result(None, PostLocalSGD(2, warmup), peers=4, optimizer=optimizer) for warmup in (6, 0))
    assert apart(long, result(None, AllReduce(), peers=4, rounds=12, optimizer=optimizer)) < 1e-5
    assert apart(none, result(None, LocalSGD(2), peers=4, optimizer=optimizer)) == 0


def test_post_local_sgd_sends_h_times_as_much_while_it_warms_up():
    assert result(None, PostLocalSGD(4, 3)).bytes == pytest.approx((3 * 4 + 3) / 6 * result(None, LocalSGD(4)).bytes)


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM], ids=["sgd", "momentum"])
def test_diloco_with_outer_sgd_of_rate_one_and_no_momentum_is_local_sgd(optimizer):
    plain = DiLoCo(every=4, outer_lr=1.0, momentum=0.0)
    require_same([plain, LocalSGD(every=4)], optimizer=optimizer)
    require_same([replace(plain, nesterov=False), LocalSGD(every=4)], optimizer=optimizer)


def test_gossip_on_the_complete_graph_is_all_reduce():
    require_same([Gossip("complete"), AllReduce()])


def test_gossip_with_a_matrix_is_gossip_on_the_topology_it_describes():
    require_same([Gossip(topologies.ring(4).weights), Gossip("ring")])


def test_gossip_without_neighbours_is_independent():
    require_same([Gossip(torch.eye(4).numpy()), Independent()])


def test_elastic_averaging_without_springs_is_independent():
    require_same([EASGD(every=3, alpha=0.0), Independent(every=3)])


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
def test_gossip_on_the_one_peer_exponential_graph_is_the_exact_mean_after_log_n_rounds(on):
    """Ying et al., arXiv:2110.13363, Sec. 4: of 2^τ peers, in any τ rounds in a row."""
    models = [mlp() for _ in range(8)]
    mean = torch.stack([nn.utils.parameters_to_vector(model.parameters()) for model in models]).mean(0)
    still = {"optimizer": partial(torch.optim.SGD, lr=0.0), "on": on}
    rounds = [lk.train(models, DIGITS, Gossip("one_peer_exponential"), rounds=r, **still).result(60) for r in (2, 3)]
    assert (parameters(rounds[0]) - mean).abs().max() > 1e-3
    torch.testing.assert_close(parameters(rounds[1]), mean.detach().expand(8, -1), atol=1e-6, rtol=0)
    assert rounds[1].bytes == 3 * 4 * len(mean)  # to one peer a round


@pytest.mark.parametrize("algorithm", [Gossip("pairing"), ADPSGD("pairing"), ADPSGD("one_peer_exponential")], ids=repr)
@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
def test_pairs_that_are_others_in_each_round_agree_in_the_end(on, algorithm):
    models, still = [nn.Linear(64, 10) for _ in range(8)], partial(torch.optim.SGD, lr=0.0)
    run = lk.train(models, DIGITS, algorithm, rounds=60, batch_size=16, optimizer=still, on=on).result(60)
    assert parameters(run).std(0).max() < 1e-4 < parameters(run).abs().max()


def test_pairs_on_workers_are_those_of_the_round(lab):
    runs = [result(on, Gossip("pairing"), peers=6, rounds=5) for on in (lab, lk.Lockstep())]
    assert difference(*runs) < 1e-5


# -- a server's clients


@pytest.mark.parametrize(
    "algorithm",
    [
        FedProx(every=3, mu=0.0),
        FedAvgM(every=3, momentum=0.0, server_lr=1.0),
        FedNova(every=3),
        FedNova(every=3, momentum=0.5),
    ],
    ids=repr,
)
@pytest.mark.parametrize("participation", [1.0, 0.5])
@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM], ids=["sgd", "momentum"])
def test_at_their_limits_they_are_fed_avg(algorithm, participation, optimizer):
    both = [replace(it, participation=participation) for it in (algorithm, FedAvg(every=3))]
    require_same(both, optimizer=optimizer)


@pytest.mark.parametrize(
    "settings",
    [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.5, "weight_decay": 1e-4}],
    ids=str,
)
@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
def test_fed_nova_knows_how_far_the_run_s_own_optimiser_goes(on, settings):
    """Arithmetic by hand of τ_eff Σ p (xₖ − x)/aₖ, where aₖ is what torch's optimiser makes of a gradient of one."""
    skew, optimizer = lk.data.Quantity(0.5, least=16), partial(torch.optim.SGD, lr=0.02, **settings)
    meets = list(
        lk.step_through(
            mlp, DIGITS, FedNova(epochs=1), peers=4, rounds=1, batch_size=16, seed=3, shards=skew, optimizer=optimizer
        )
    )
    steps = [-(-len(part) // 16) for part in DIGITS.shards(4, skew, seed=3).indices]
    lengths = []
    for count in steps:
        x = torch.zeros(1, requires_grad=True)
        alone = torch.optim.SGD([x], lr=1.0, **(settings | {"weight_decay": 0.0}))
        for _ in range(count):
            x.grad = torch.ones(1)
            alone.step()
        lengths.append(-x.item())
    assert len(set(steps)) > 2
    assert [met["steps"].item() for met in meets[1].sent] == pytest.approx(lengths, rel=1e-5)
    p = torch.tensor([len(part) for part in DIGITS.shards(4, skew, seed=3).indices]) / len(DIGITS)
    far = float(p @ torch.tensor(lengths))  # τ_eff
    start = result(None, FedAvg(1), peers=4, rounds=1, optimizer=partial(torch.optim.SGD, lr=0.0))
    run = result(on, FedNova(epochs=1), peers=4, rounds=1, shards=skew, optimizer=optimizer)
    for name, x in dict(start.models[0].named_parameters()).items():
        expected = x.detach() + far * meets[0].received[0][name]
        torch.testing.assert_close(dict(run.models[0].named_parameters())[name].detach(), expected, atol=1e-5, rtol=0)


def test_fed_nova_is_not_fed_avg_where_clients_take_different_numbers_of_steps():
    skew = lk.data.Quantity(0.5, least=16)
    runs = [result(None, algorithm, peers=4, shards=skew) for algorithm in (FedNova(epochs=1), FedAvg(epochs=1))]
    assert apart(*runs) > 1e-3


def test_fed_avg_of_everybody_is_local_sgd_for_an_optimiser_that_remembers_nothing():
    require_same([FedAvg(every=3), LocalSGD(every=3)])
    momentum = [
        result(None, algorithm, peers=4, optimizer=MOMENTUM) for algorithm in (FedAvg(every=3), LocalSGD(every=3))
    ]
    assert apart(*momentum) > 1e-4


@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_scaffold_with_zero_controls_is_fed_avg(participation):
    """In the first round, or whenever everybody meets for the first time; shards of one size, for its mean is plain."""
    both = [it(every=1, participation=participation) for it in (SCAFFOLD, FedAvg)]
    require_same(both, rounds=1)


def test_scaffold_of_everybody_with_one_step_is_fed_avg_in_every_round():
    """The controls cancel in the mean: Σ (cₖ − c) = 0."""
    require_same([SCAFFOLD(every=1), FedAvg(every=1)], rounds=10)


def test_the_first_round_of_fed_dyn_goes_twice_as_far_as_fed_avg():
    """x + 2 (mean − x), as h = −α (mean − x); the local steps are FedAvg's where α is next to nothing."""
    still = partial(torch.optim.SGD, lr=0.0)
    dyn, avg, start = (
        parameters(lk.train(mlp, EVEN, it, **(SETTINGS | {"rounds": 1, "optimizer": optimizer})).result(60))
        for it, optimizer in ((FedDyn(every=3, alpha=1e-5), SGD), (FedAvg(every=3), SGD), (FedAvg(every=3), still))
    )
    torch.testing.assert_close(dyn, start + 2 * (avg - start), rtol=0, atol=1e-4)


def test_fed_df_that_learns_next_to_nothing_from_the_clients_logits_is_fed_avg():
    runs = [result(None, it, peers=4, public=DIGITS.x[:64]) for it in (FedDF(every=3, server_lr=1e-9), FedAvg(every=3))]
    assert apart(*runs) < 1e-5


# -- predictions: without weight on what the others say, peers are independent


@dataclass(frozen=True)
class Apart(Independent):
    """Independent peers that start apart and see the same batches."""

    starts_apart: ClassVar[bool] = True
    same_batches: ClassVar[bool] = True


def different():
    """Four models with different weights."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return [mlp() for _ in range(4)]


def teacher():
    return different()[-1]


@pytest.mark.parametrize(
    ("algorithm", "alone"),
    [
        (Mutual(weight=0.0), Apart()),
        (Codistillation(every=3, weight=0.0), Independent(every=3)),
        (Codistillation(every=3, warmup=6), Independent(every=3)),
        (Distillation(teacher(), weight=0.0, every=3), Independent(every=3)),
        (FedMD(every=3, warmup=6), Independent(every=3)),
        (CoTeaching(forget=0.0), Apart()),
        (CoTeachingPlus(forget=0.0, warmup=10), Apart()),
    ],
    ids=repr,
)
def test_without_weight_on_the_others_peers_are_independent(algorithm, alone):
    models = different()
    one, other = (result(None, it, models, peers=4, public=DIGITS.x[:64]) for it in (algorithm, alone))
    assert apart(one, other) < 1e-5
    assert apart(one, result(None, alone, models, peers=4, rounds=1)) > 1e-3


def test_co_teaching_plus_while_it_warms_up_is_co_teaching():
    models = different()
    runs = [result(None, it, models, peers=4) for it in (CoTeaching(0.4, 1), CoTeachingPlus(0.4, 1, warmup=9))]
    assert apart(*runs) == 0


def test_two_mutual_learners_of_the_same_weights_have_nothing_to_tell_each_other():
    alike = [teacher(), teacher()]
    runs = [result(None, it, alike) for it in (Mutual(), Apart())]
    assert apart(*runs) < 1e-5


def test_a_teacher_alone_at_temperature_one_is_training_on_its_probabilities():
    with torch.no_grad():
        taught = replace(DIGITS, y=teacher()(DIGITS.x).softmax(-1), source=None)
    runs = [
        lk.train(mlp, data, it, **SETTINGS).result(60)
        for data, it in ((DIGITS, Distillation(teacher(), temperature=1.0, weight=1.0)), (taught, Independent()))
    ]
    assert apart(*runs) < 1e-5
