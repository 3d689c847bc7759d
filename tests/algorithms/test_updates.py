"""What is sent and what is made of it, against the published formulas in plain code.

The model is a line through the origin in the plane, ŷ = w·a. Client k has n_k copies of one example (a_k, b_k), so that
its gradient is 2 (w·a_k − b_k) a_k whichever batch it is dealt.
"""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import (
    EASGD,
    SCAFFOLD,
    AllReduce,
    DiLoCo,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDyn,
    FedNova,
    FedProx,
    FedYogi,
    Gossip,
    PostLocalSGD,
)
from labkit.data import Tensors
from labkit.data.batches import Epochs
from labkit.tasks.split import Partition

A = np.array([[1.0, 0.5], [-0.5, 1.0], [0.25, -0.75]])
B = np.array([1.0, -1.0, 0.5])
SIZES = np.array([2, 4, 6])
SHARE = SIZES / SIZES.sum()  # pₖ
START = np.array([0.3, -0.2])
LR, ROUNDS = 0.1, 4
ENGINES = [lk.Lockstep(), lk.Simulator()]


def line():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(START))
    return model


def squared(outputs, targets):
    return (outputs.squeeze(-1) - targets).square().mean()


def trained(algorithm, on=None, momentum=0.0):
    """The weights of every model that comes back, [models, 2], and who took part in each round."""
    x, y = (torch.tensor(np.repeat(it, SIZES, axis=0), dtype=torch.float32) for it in (A, B))
    owners = Partition(range(SIZES.sum()), np.split(np.arange(SIZES.sum()), np.cumsum(SIZES)[:-1]), "copies")
    data = Tensors("copies", x, y, x[:1], y[:1], 1)
    settings = {"shards": owners, "rounds": ROUNDS, "batch_size": 2, "loss": squared}
    settings["optimizer"] = partial(torch.optim.SGD, lr=LR, momentum=momentum)
    history = lk.train(line(), data, algorithm, on=on, **settings).result(60)
    weights = torch.stack([model.weight.detach().flatten() for model in history.models])
    return weights.numpy(), [row.peers or (0, 1, 2) for row in history.rows]


def gradient(w, k):
    return 2 * (w @ A[k] - B[k]) * A[k]


def local(w, k, steps, more=lambda w: 0.0):
    """Plain SGD on client k's loss, with `more` added to its gradient."""
    for _ in range(steps):
        w = w - LR * (gradient(w, k) + more(w))
    return w


def near(expected):
    return pytest.approx(np.asarray(expected), abs=2e-6)


@pytest.fixture(params=ENGINES, ids=["lockstep", "stacked"])
def on(request):
    return request.param


# -- a server's clients


def test_fed_avg_weighs_clients_by_their_examples(on):
    w = START
    for _ in range(ROUNDS):
        w = sum(SHARE[k] * local(w, k, 3) for k in range(3))
    assert trained(FedAvg(every=3), on)[0][0] == near(w)


def test_fed_avg_with_epochs_takes_as_many_steps_as_a_client_has_batches(on):
    w = START
    for _ in range(ROUNDS):
        w = sum(SHARE[k] * local(w, k, 2 * SIZES[k] // 2) for k in range(3))
    assert trained(FedAvg(epochs=2), on)[0][0] == near(w)


@pytest.mark.parametrize("algorithm", [FedAvg(epochs=2), FedProx(epochs=2, mu=0.0), FedNova(epochs=2)], ids=repr)
def test_passes_have_all_examples_the_last_batch_those_that_are_left(on, algorithm):
    """Shards of 7, 8 and 3 digits in batches of 4: the smaller ones step on 3 examples (McMahan et al., Alg. 1)."""
    sizes, digits = [7, 8, 3], lk.data.load("digits")
    shards = Partition(range(18), np.split(np.arange(18), [7, 15]), "three")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Linear(64, 10)
    settings = {"rounds": 2, "batch_size": 4, "seed": 3, "optimizer": partial(torch.optim.SGD, lr=LR)}
    trained_one = lk.train(model, digits, algorithm, shards=shards, on=on, **settings).result(60).models[0]
    streams = [Epochs(own, 4, 3, k, None) for k, own in enumerate(shards)]
    for _ in range(2):
        moved, lengths = [], []
        for stream, size in zip(streams, sizes, strict=True):
            client = copy.deepcopy(model)
            seen = []
            for _ in range(2 * -(-size // 4)):
                at = torch.from_numpy(next(stream))
                seen += at.tolist()
                loss = nn.functional.cross_entropy(client(digits.x[at]), digits.y[at])
                for p, g in zip(client.parameters(), torch.autograd.grad(loss, list(client.parameters())), strict=True):
                    p.data -= LR * g
            assert len(seen) == 2 * size and len(set(seen)) == size
            moved.append(client.state_dict())
            lengths.append(2 * -(-size // 4))
        share, start = np.array(sizes) / 18, copy.deepcopy(model.state_dict())
        far = share @ lengths if isinstance(algorithm, FedNova) else None
        for name, x in start.items():
            each = [(own[name] - x) / (t if far else 1) for own, t in zip(moved, lengths, strict=True)]
            model.state_dict()[name].copy_(x + (far or 1) * sum(p * d for p, d in zip(share, each, strict=True)))
    for p, q in zip(trained_one.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-6, rtol=0)


def test_fed_avg_of_some_clients_weighs_them_among_themselves(on):
    weights, present = trained(FedAvg(every=3, participation=0.67), on)
    w = START
    for who in present:
        w = sum(SIZES[k] * local(w, k, 3) for k in who) / sum(SIZES[k] for k in who)
    assert len({len(who) for who in present}) == 1 and len(present[0]) == 2
    assert weights[0] == near(w)


def test_fed_prox_pulls_clients_back_to_the_servers_model(on):
    w = START
    for _ in range(ROUNDS):
        w = sum(SHARE[k] * local(w, k, 3, lambda y, w=w: 0.5 * (y - w)) for k in range(3))
    assert trained(FedProx(every=3, mu=0.5), on)[0][0] == near(w)


def test_fed_avg_m_keeps_a_velocity(on):
    w, v = START, 0.0
    for _ in range(ROUNDS):
        v = 0.8 * v + (w - sum(SHARE[k] * local(w, k, 3) for k in range(3)))
        w = w - 0.5 * v
    assert trained(FedAvgM(every=3, momentum=0.8, server_lr=0.5), on)[0][0] == near(w)


def fed_adam(second_moment):
    w, m, v = START, 0.0, 0.05**2
    for _ in range(ROUNDS):
        d = sum(SHARE[k] * (local(w, k, 3) - w) for k in range(3))
        m = 0.7 * m + 0.3 * d
        v = second_moment(v, d)
        w = w + 0.1 * m / (np.sqrt(v) + 0.05)
    return w


def test_fed_adam_divides_by_a_running_mean_of_squares(on):
    expected = fed_adam(lambda v, d: 0.9 * v + 0.1 * d**2)
    assert trained(FedAdam(every=3, server_lr=0.1, beta1=0.7, beta2=0.9, tau=0.05), on)[0][0] == near(expected)


def test_fed_yogi_adds_to_its_squares_or_takes_away(on):
    expected = fed_adam(lambda v, d: v - 0.1 * d**2 * np.sign(v - d**2))
    assert trained(FedYogi(every=3, server_lr=0.1, beta1=0.7, beta2=0.9, tau=0.05), on)[0][0] == near(expected)
    assert expected != near(fed_adam(lambda v, d: 0.9 * v + 0.1 * d**2))


def test_one_step_of_fed_adam_by_hand():
    """Δ = 0.1: m = 0.01, v = 0.99·10⁻⁶ + 0.01·0.01 = 1.0099·10⁻⁴, step = η · 0.01 / (0.010049 + 0.001)."""
    v = FedAdam().second_moment(torch.tensor(1e-6), torch.tensor(0.1))
    assert float(v) == pytest.approx(1.0099e-4)
    assert float(FedYogi().second_moment(torch.tensor(1e-6), torch.tensor(0.1))) == pytest.approx(1.01e-4)
    assert float(FedYogi().second_moment(torch.tensor(1.0), torch.tensor(0.1))) == pytest.approx(1 - 1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_fed_nova_divides_by_how_far_a_clients_steps_go(on, momentum):
    """‖a‖₁ by its definition: the j-th of τ gradients is counted in 1 + ρ + … + ρ^(τ−j) of the following steps."""

    def with_momentum(w, k, steps):
        u = 0.0
        for _ in range(steps):
            u = momentum * u + gradient(w, k)
            w = w - LR * u
        return w

    steps = SIZES // 2  # one epoch
    length = np.array([sum(sum(momentum**i for i in range(t - j)) for j in range(t)) for t in steps])
    w = START
    for _ in range(ROUNDS):
        directions = [(with_momentum(w, k, steps[k]) - w) / length[k] for k in range(3)]
        w = w + (SHARE @ length) * (SHARE @ directions)
    assert trained(FedNova(epochs=1, momentum=momentum), on, momentum)[0][0] == near(w)


@pytest.mark.parametrize("participation", [1.0, 0.67])
def test_fed_dyn_keeps_gradients_of_clients_and_h_of_the_server(on, participation):
    weights, present = trained(FedDyn(every=3, alpha=0.4, participation=participation), on)
    w, h, g = START, 0.0, [0.0] * 3
    for who in present:
        ends = {k: local(w, k, 3, lambda y, w=w, k=k: -g[k] + 0.4 * (y - w)) for k in who}
        for k, y in ends.items():
            g[k] = g[k] - 0.4 * (y - w)
        h = h - 0.4 / 3 * sum(y - w for y in ends.values())
        w = sum(ends.values()) / len(who) - h / 0.4
    assert weights[0] == near(w)


@pytest.mark.parametrize("participation", [1.0, 0.67])
def test_scaffold_by_option_two_of_its_algorithm(on, participation):
    weights, present = trained(SCAFFOLD(every=3, server_lr=0.8, participation=participation), on)
    x, c, own = START, 0.0, [0.0] * 3
    for who in present:
        dy, dc = [], []
        for k in who:
            y = local(x, k, 3, lambda _, c=c, k=k: c - own[k])
            new = own[k] - c + (x - y) / (3 * LR)
            dy.append(y - x)
            dc.append(new - own[k])
            own[k] = new
        x = x + 0.8 * np.mean(dy, axis=0)
        c = c + len(who) / 3 * np.mean(dc, axis=0)
    assert weights[0] == near(x)


def test_scaffold_counts_only_the_steps_a_client_takes(on):
    """Clients of 1, 2 and 3 batches stop one after the other."""
    x, c, own = START, 0.0, [0.0] * 3
    for _ in range(ROUNDS):
        ends, new = [], []
        for k, steps in enumerate(SIZES // 2):
            ends.append(local(x, k, steps, lambda _, tilt=c - own[k]: tilt))
            new.append(own[k] - c + (x - ends[-1]) / (steps * LR))
        c = c + np.mean(new, axis=0) - np.mean(own, axis=0)
        x, own = np.mean(ends, axis=0), new
    assert trained(SCAFFOLD(epochs=1), on)[0][0] == near(x)


# -- peers


def test_diloco_takes_a_nesterov_step_on_what_the_peers_went(on):
    x, v = START, 0.0
    for _ in range(ROUNDS):
        d = x - np.mean([local(x, k, 3) for k in range(3)], axis=0)
        v = 0.6 * v + d
        x = x - 0.5 * (d + 0.6 * v)
    assert trained(DiLoCo(every=3, outer_lr=0.5, momentum=0.6), on)[0][0] == near(x)


def test_diloco_steps_as_torchs_sgd_does():
    outer = nn.Parameter(torch.tensor(START))
    sgd = torch.optim.SGD([outer], lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(ROUNDS):
        w = outer.detach().numpy()
        outer.grad = torch.tensor(w - np.mean([local(w, k, 3) for k in range(3)], axis=0))
        sgd.step()
    assert trained(DiLoCo(every=3))[0][1] == near(outer.detach().numpy())


def elastic(alpha, beta, every):
    x, centre = [START] * 3, START
    for _ in range(ROUNDS):
        mean = np.mean(x, axis=0)
        x = [w - LR * gradient(w, k) - alpha * (w - centre) for k, w in enumerate(x)]
        centre = (1 - beta) * centre + beta * mean
        x = [local(w, k, every - 1) for k, w in enumerate(x)]
    return np.array(x)


def test_elastic_averaging_pulls_workers_and_centre_together(on):
    assert trained(EASGD(every=1, beta=0.6), on)[0] == near(elastic(0.2, 0.6, 1))
    assert trained(EASGD(every=3, beta=0.6, alpha=0.5), on)[0] == near(elastic(0.5, 0.6, 3))


def test_gossip_steps_and_then_mixes(on):
    mixing = np.array([[0.6, 0.4, 0.0], [0.4, 0.3, 0.3], [0.0, 0.3, 0.7]])
    x = np.array([START] * 3)
    for _ in range(ROUNDS):
        x = mixing @ np.array([local(x[k], k, 2) for k in range(3)])
    assert trained(Gossip(mixing, every=2), on)[0] == near(x)


@pytest.mark.parametrize("form", ["native", "naive", "ring", "tree"])
def test_all_reduce_steps_on_the_mean_gradient_whatever_its_form(on, form):
    w = START
    for _ in range(ROUNDS):
        w = w - LR * np.mean([gradient(w, k) for k in range(3)], axis=0)
    assert trained(AllReduce(form=form), on)[0] == near([w] * 3)


def test_post_local_sgd_synchronises_every_step_and_then_every_other(on):
    w = START
    for _ in range(2 * 2):
        w = w - LR * np.mean([gradient(w, k) for k in range(3)], axis=0)
    for _ in range(2):
        w = np.mean([local(w, k, 2) for k in range(3)], axis=0)
    assert trained(PostLocalSGD(every=2, warmup=2), on)[0] == near([w] * 3)
