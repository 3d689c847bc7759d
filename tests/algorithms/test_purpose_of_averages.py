"""Those who average parameters do what they are for: cope with skewed data, send less, do without a centre.

Learning rates were chosen for the baseline where there is one, or for both; all else is the paper's or a default.
Figures stand in the assertions' messages.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import labkit as lk
from labkit import tree
from labkit.algorithms import (
    EASGD,
    SCAFFOLD,
    AllReduce,
    DiLoCo,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDF,
    FedDyn,
    FedNova,
    FedProx,
    FedYogi,
    Gossip,
)
from labkit.exchange.topologies import choose
from tests.algorithms.figures import (
    DIGITS,
    PRIVATE,
    PUBLIC,
    Figures,
    require_better,
    sgd,
    trained,
)
from tests.engines.experiments import mlp, parameters

# -- clients of different data


SKEWS = [lk.data.ByLabel(2), lk.data.Dirichlet(0.1, least=16)]


@pytest.mark.claims
@pytest.mark.parametrize("skew", SKEWS, ids=repr)
def test_scaffold_beats_fed_avg_on_strong_skew(skew):
    """Three of ten clients a round, 20 steps each; FedProx, stated beside it, is about as good as FedAvg here."""
    settings = {"peers": 10, "rounds": 30, "shards": skew, "optimizer": sgd(0.3)}
    avg, prox, scaffold = (Figures(it(20, participation=0.3), 4, **settings) for it in (FedAvg, FedProx, SCAFFOLD))
    assert scaffold.mean > avg.mean + 0.04, f"{scaffold}; {avg}; {prox}"
    assert abs(prox.mean - avg.mean) < 0.04, f"{scaffold}; {avg}; {prox}"


@pytest.mark.claims
def test_fed_dyn_beats_fed_avg_on_strong_skew():
    settings = {"peers": 10, "rounds": 30, "shards": lk.data.ByLabel(2), "optimizer": sgd(0.3)}
    require_better(*(Figures(it(20, participation=0.3), 3, **settings) for it in (FedDyn, FedAvg)), points=5)


@pytest.mark.claims
@pytest.mark.parametrize("adaptive", [FedAvgM, FedAdam, FedYogi])
def test_a_servers_momentum_and_scaling_help_on_strong_skew(adaptive):
    settings = {"peers": 10, "rounds": 30, "shards": lk.data.ByLabel(2)}
    require_better(*(Figures(it(20), 3, **settings) for it in (adaptive, FedAvg)), points=2)


def test_fed_prox_keeps_clients_nearer_to_the_servers_model():
    """The spread of the clients' models before they are averaged falls as μ rises."""
    drifts = []
    for mu in (0.0, 1.0, 5.0):
        settings = {"peers": 10, "rounds": 1, "shards": lk.data.ByLabel(1), "batch_size": 16}
        with lk.step_through(mlp, DIGITS, FedProx(20, mu=mu), **settings) as walk:
            models = torch.stack([tree.flatten(sent) for sent in next(walk).sent])
        drifts.append(float((models - models.mean(0)).norm(dim=1).mean()))
    assert drifts[0] > 1.2 * drifts[1] > 1.2**2 * drifts[2], drifts


def test_fed_nova_ends_near_the_optimum_of_all_where_fed_avg_leans_to_who_steps_more():
    """ℓ₁ = (w − 1)² with 32 examples and ℓ₂ = (w + 1)² with 8: the optimum of all examples is w = 0.6.

    An epoch is eight steps or two, each of which leaves r = 1 − 2η of the distance, and FedAvg comes to rest where
    Σ pₖ (1 − r^τₖ)(tₖ − w) = 0, while in FedNova each term is divided by τₖ: at 0.85 and 0.50 for η = 0.05.
    """
    x, y = torch.ones(40, 1), torch.cat([torch.ones(32), -torch.ones(8)])
    settings = {
        "dataset": lk.data.Tensors("two opinions", x, y, x[:1], y[:1], 1),
        "shards": lk.Partition.of(40, [list(range(32)), list(range(32, 40))]),
        "loss": lambda out, target: (out.squeeze(-1) - target).square().mean(),
    }
    settings |= {"batch_size": 4, "rounds": 100, "optimizer": sgd(0.05)}
    ends = [
        float(trained(it(epochs=1), nn.Linear(1, 1, bias=False), **settings).models[0].weight.detach())
        for it in (FedAvg, FedNova)
    ]
    assert ends == [pytest.approx(0.846, abs=0.01), pytest.approx(0.500, abs=0.01)]


@pytest.mark.claims
def test_fed_df_mends_averages_of_clients_that_have_gone_far_apart():
    """40 epochs on Dirichlet(0.1) shards between two averages."""
    skew = lk.data.Dirichlet(0.1, least=16)
    settings = {"dataset": PRIVATE, "public": PUBLIC, "peers": 10, "rounds": 4, "shards": skew, "optimizer": sgd(0.3)}
    df, avg = FedDF(epochs=40, participation=0.4, public=32), FedAvg(epochs=40, participation=0.4)
    require_better(Figures(df, 3, **settings), Figures(avg, 3, **settings), points=4)


# -- communicate less


@pytest.mark.claims
def test_diloco_is_within_a_point_of_all_reduce_at_a_fiftieth_of_the_bytes():
    """The paper's outer settings and inner optimiser, 1,500 steps of four workers."""
    adamw = {"optimizer": partial(torch.optim.AdamW, lr=3e-3), "peers": 4}
    every, seldom = Figures(AllReduce(), 4, rounds=1500, **adamw), Figures(DiLoCo(50), 4, rounds=30, **adamw)
    assert seldom.bytes == pytest.approx(every.bytes / 50)
    require_better(seldom, every, points=-1)


@pytest.mark.parametrize("topology", ["ring", "torus", "exponential", "complete"])
def test_gossip_reaches_consensus_as_fast_as_the_spectral_gap_says(topology):
    """Without steps, each round brings peers nearer to their mean by a factor of λ₂ = 1 − gap at least."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = [mlp() for _ in range(12)]
    start = torch.stack([nn.utils.parameters_to_vector(model.parameters()) for model in models]).detach()
    rounds, gap = 15, choose(topology, 12).spectral_gap
    end = parameters(trained(Gossip(topology), models, peers=12, rounds=rounds, optimizer=sgd(0.0)))
    torch.testing.assert_close(end.mean(0), start.mean(0), rtol=0, atol=1e-6)
    before, after = (float((x - x.mean(0)).norm()) for x in (start, end))
    bound = (1 - gap) ** rounds * before
    assert after <= bound + 1e-5 * before, f"{topology}: {after:.3g} left of {before:.3g}, at most {bound:.3g} expected"


def test_gossip_on_a_better_connected_graph_keeps_peers_nearer_together():
    spread = {}
    for topology in ("ring", "exponential", "complete"):
        end = parameters(trained(Gossip(topology), peers=16, rounds=60, shards=lk.data.ByLabel(2)))
        spread[topology] = float((end - end.mean(0)).norm(dim=1).mean())
    assert spread["ring"] > 1.5 * spread["exponential"] > 1e3 * spread["complete"], spread


def test_elastic_averaging_explores_more_with_softer_springs():
    spread = {}
    for beta in (0.1, 0.5, 0.9):
        end = parameters(trained(EASGD(4, beta=beta), peers=4, rounds=40))
        spread[beta] = float((end - end.mean(0)).norm(dim=1).mean())
    assert spread[0.1] > 1.1 * spread[0.5] > 1.1 * spread[0.9], spread
