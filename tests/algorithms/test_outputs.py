"""Algorithms that compare predictions, by what the outputs are: right wherever classes are, or refused beforehand."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import labkit as lk
from labkit.algorithms import (
    Codistillation,
    Compressed,
    CoTeaching,
    CoTeachingPlus,
    Distillation,
    Ensemble,
    FedDF,
    FedMD,
    LocalSGD,
    Mutual,
)
from labkit.data import Tensors
from labkit.errors import ModelError, SettingError

N, C, T, LR = 24, 3, 5, 0.05


class Shaped(nn.Module):
    """A layer that is not linear, whose outputs have this shape, with `at` the place of the last dimension."""

    def __init__(self, *shape, at=-1):
        super().__init__()
        self.layer, self.shape, self.at = nn.Linear(4, torch.Size(shape).numel()), shape, at

    def forward(self, x):
        return self.layer(x).sinh().reshape(-1, *self.shape).movedim(-1, self.at)


def tokens_last(out, t):
    return F.cross_entropy(out.movedim(-1, 1), t)


def squared(out, t):
    return F.mse_loss(out.squeeze(-1), t)


def one_logit(out, t):
    return F.binary_cross_entropy_with_logits(out.squeeze(-1), t)


GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=GENERATOR)


def classes(*shape):
    return torch.randint(C, (N, *shape), generator=GENERATOR)


def yes_or_no(*shape):
    return torch.randint(2, (N, *shape), generator=GENERATOR).float()


# name: model, targets, loss, the dimension of the classes
WITH_CLASSES = {
    "classes": (partial(Shaped, C), classes(), F.cross_entropy, -1),
    "tokens, classes last": (partial(Shaped, T, C), classes(T), tokens_last, -1),
    "tokens, classes second": (partial(Shaped, T, C, at=1), classes(T), F.cross_entropy, -2),
    "as many tokens as classes": (partial(Shaped, C, C, at=1), classes(C), F.cross_entropy, -2),
    "pixels": (partial(Shaped, 2, 2, C, at=1), classes(2, 2), F.cross_entropy, -3),
}
WITHOUT = {
    "regression": (partial(Shaped, 1), X.sum(1), squared, "real numbers"),
    "two numbers": (partial(Shaped, 2), X[:, :2] * 2, F.mse_loss, "real numbers"),
    "one logit": (partial(Shaped, 1), yes_or_no(), one_logit, "each say yes or no"),
    "labels": (partial(Shaped, 3), yes_or_no(3), F.binary_cross_entropy_with_logits, "each say yes or no"),
    "pixels of one class": (
        partial(Shaped, 1, 2, 2),
        yes_or_no(1, 2, 2),
        F.binary_cross_entropy_with_logits,
        "each say yes or no",
    ),
}
ON = pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
CLASSES = pytest.mark.parametrize("task", WITH_CLASSES.values(), ids=list(WITH_CLASSES))
OTHERS = pytest.mark.parametrize("task", WITHOUT.values(), ids=list(WITHOUT))


def two(make):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return [make(), make()]


def trained(task, algorithm, on, rounds=1, models=None, **settings):
    make, y, loss, _ = task
    plain = partial(torch.optim.SGD, lr=LR)
    everything = {"optimizer": plain, "batch_size": N, "shards": lk.data.Replicated(), "public": X, "peers": 2}
    return lk.train(
        two(make) if models is None else models,
        Tensors("made up", X, y, X, y, classes=0),
        algorithm,
        rounds=rounds,
        on=on,
        loss=loss,
        **everything | settings,
    ).result(60)


def step(model, loss, lr=LR):
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            p -= lr * g


def require_same(history, models):
    for one, other in zip(history.models, models, strict=True):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=2e-6)


def soft(taught, logits, at):
    """CE of two tensors of logits, the mean over all that is not a class."""
    return -(taught.detach().softmax(at) * logits.log_softmax(at)).sum(at).mean()


@ON
@CLASSES
def test_mutual_learners_compare_classes_where_they_are(task, on):
    _, y, loss, at = task
    models = two(task[0])
    history = trained(task, Mutual(), on)
    outs = [model(X) for model in models]
    for k, model in enumerate(models):
        step(model, loss(outs[k], y) + soft(outs[1 - k], outs[k], at))
    require_same(history, models)


@ON
@CLASSES
def test_teachers_speak_of_classes_where_they_are(task, on):
    make, y, loss, at = task
    models, teacher = two(make), two(make)[0]
    history = trained(task, Distillation(teacher, temperature=2.0), on)
    for model in models:
        out = model(X)
        step(model, 0.5 * loss(out, y) + 0.5 * 4 * soft(teacher(X) / 2, out / 2, at))
    require_same(history, models)

    models = two(make)
    history = trained(task, Codistillation(every=1, warmup=0), on)
    old = copy.deepcopy(models)
    for k, model in enumerate(models):
        out = model(X)
        step(model, loss(out, y) + soft(old[1 - k](X), out, at))
    require_same(history, models)


@ON
@CLASSES
def test_a_server_distils_classes_where_they_are(task, on):
    make, y, loss, at = task
    server, half = two(make)[0], N // 2
    halves = {
        "batch_size": half,
        "shards": lk.split(N, parts=2),
        "public": X[:half],
        "optimizer": partial(torch.optim.SGD, lr=1.0),
    }
    algorithm = FedDF(every=1, public=1, server_lr=0.01)
    history = trained(task, algorithm, on, models=copy.deepcopy(server), **halves)
    clients = [copy.deepcopy(server) for _ in range(2)]
    for client, own in zip(clients, (slice(half), slice(half, N)), strict=True):
        step(client, loss(client(X[own]), y[own]), lr=1.0)
    with torch.no_grad():
        for p, *own in zip(server.parameters(), *(client.parameters() for client in clients), strict=True):
            p.copy_(torch.stack(own).mean(0))
    agreed = torch.stack([client(X[:half]) for client in clients]).mean(0)
    adam = torch.optim.Adam(server.parameters(), lr=0.01, eps=1e-4)
    soft(agreed, server(X[:half]), at).backward()
    adam.step()
    require_same(history, [server] * 2)


@ON
@CLASSES
def test_partners_disagree_about_classes_where_they_are(task, on):
    make, y, loss, at = task
    models = two(make)
    history = trained(task, CoTeachingPlus(forget=0.0, warmup=0), on)
    with torch.no_grad():
        said = [model(X).argmax(at).reshape(N, -1) for model in models]
    apart = (said[0] != said[1]).any(1)
    assert apart.any()
    for model in models:
        step(model, loss(model(X)[apart], y[apart]))
    require_same(history, models)


@ON
@CLASSES
def test_an_ensemble_is_the_mean_of_probabilities_where_classes_are(task, on):
    _, y, loss, at = task
    history = trained(task, Ensemble(), on, rounds=2)
    with torch.no_grad():
        agreed = torch.stack([model(X).softmax(at) for model in history.models]).mean(0)
    assert history.final.test_losses == (pytest.approx(float(loss(agreed.log(), y)), rel=1e-5),)
    assert history.final.accuracies == (pytest.approx(float((agreed.argmax(at) == y).double().mean())),)


@ON
@OTHERS
def test_an_ensemble_is_the_mean_of_what_is_predicted(task, on):
    _, y, loss, said = task
    history = trained(task, Ensemble(), on, rounds=2)
    with torch.no_grad():
        outs = torch.stack([model(X) for model in history.models])
    agreed = outs.mean(0) if said == "real numbers" else outs.sigmoid().mean(0).logit()
    assert history.final.test_losses == (pytest.approx(float(loss(agreed, y)), rel=1e-5),)


@ON
def test_an_ensemble_of_probabilities_of_labels_is_their_mean(on):
    def make():
        return nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())

    task = make, yes_or_no(3), F.binary_cross_entropy, None
    history = trained(task, Ensemble(), on, rounds=2)
    with torch.no_grad():
        agreed = torch.stack([model(X) for model in history.models]).mean(0)
    assert history.final.test_losses == (pytest.approx(float(task[2](agreed, task[1])), rel=1e-5),)


@ON
@pytest.mark.parametrize("task", [*WITH_CLASSES.values(), *WITHOUT.values()], ids=[*WITH_CLASSES, *WITHOUT])
def test_outputs_are_digested_and_losses_chosen_by_whatever_the_outputs_are(task, on):
    make, y, loss, _ = task
    models = two(make)
    history = trained(task, FedMD(every=1, public=1, warmup=0), on)
    with torch.no_grad():
        agreed = torch.stack([model(X) for model in models]).mean(0)
    for model in models:
        step(model, F.l1_loss(model(X), agreed))
        step(model, loss(model(X), y))
    require_same(history, models)

    models = two(make)
    history = trained(task, CoTeaching(forget=0.5, ramp=1), on, rounds=2)
    for keep in (N, N // 2):
        each = [
            torch.stack([loss(model(x), t) for x, t in zip(X[:, None], y[:, None], strict=True)]) for model in models
        ]
        chosen = [it.detach().argsort()[:keep] for it in each]
        for k, model in enumerate(models):
            step(model, each[k][chosen[1 - k]].mean())
    require_same(history, models)


@OTHERS
@pytest.mark.parametrize(
    "algorithm",
    [
        Mutual(),
        Codistillation(),
        Distillation(nn.Linear(4, 1)),
        FedDF(),
        CoTeachingPlus(),
        Compressed(FedDF()),
        [LocalSGD(1), Distillation(nn.Linear(4, 1), every=1)],
    ],
    ids=lambda it: repr(it)[:20],
)
def test_what_compares_classes_is_refused_where_there_are_none(task, algorithm):
    apart = getattr(algorithm, "starts_apart", False)
    says = f"compares scores of classes, .* {task[3]}.*: take an algorithm|The teacher's outputs are of shape"
    with pytest.raises((SettingError, ModelError), match=says):
        trained(task, algorithm, lk.Lockstep(), models=None if apart else task[0])  # as any engine's


def test_an_algorithm_of_ones_own_says_what_it_compares():
    seen = []

    class Own:
        class_scores = True

        def round(self, peer, batches):
            seen.append(peer.classes)
            peer.step(peer.loss(next(batches)))
            yield from ()

    trained(WITH_CLASSES["pixels"], Own(), lk.Lockstep())
    assert set(seen) == {-3}
    with pytest.raises(SettingError, match="Own compares scores of classes"):
        trained(WITHOUT["regression"], Own(), lk.Lockstep())
    Own.class_scores = False
    trained(WITHOUT["regression"], Own(), lk.Lockstep())
    assert seen[-1] is None
