"""Algorithms that exchange predictions, choices or teachers, against the published formulas in plain code."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import labkit as lk
from labkit.algorithms import (
    Codistillation,
    CoTeaching,
    CoTeachingPlus,
    Distillation,
    Ensemble,
    FedDF,
    FedMD,
    Mutual,
)
from labkit.data import batches
from labkit.engines.experiment import _PUBLIC
from labkit.errors import ModelError
from tests.engines.experiments import mlp

DIGITS = lk.data.load("digits")
SMALL = replace(DIGITS, x=DIGITS.x[:96], y=DIGITS.y[:96], source=None)
PUBLIC = DIGITS.x[96:192]
LR, BATCH, SEED = 0.1, 16, 3
ENGINES = [lk.Lockstep(), lk.Simulator()]


@pytest.fixture(params=ENGINES, ids=["lockstep", "stacked"])
def on(request):
    return request.param


@pytest.fixture
def models():
    """Four models with different weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return [mlp() for _ in range(4)]


def trained(algorithm, models, on=None, rounds=4, **settings):
    settings = {"batch_size": BATCH, "seed": SEED, "optimizer": partial(torch.optim.SGD, lr=LR)} | settings
    return lk.train(models, SMALL, algorithm, rounds=rounds, on=on, **settings).result(60)


def require_same(history, models, tolerance=2e-6):
    for one, other in zip(history.models, models, strict=True):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=tolerance)


def together(rounds):
    """The batches that all peers see when they hold everything."""
    stream = batches(range(len(SMALL)), BATCH, SEED, 0)
    for _ in range(rounds):
        at = torch.from_numpy(next(stream))
        yield SMALL.x[at], SMALL.y[at]


def step(model, loss):
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            p -= LR * g


def kl(p, q):
    """KL(p ‖ q) of two tensors of logits, the mean over examples."""
    return F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="batchmean", log_target=True)


def test_mutual_learners_add_the_mean_divergence_from_the_others(on, models):
    history = trained(Mutual(weight=0.7), models, on)
    for x, y in together(4):
        said = [model(x).detach() for model in models]
        for k, model in enumerate(models):
            out = model(x)
            others = [kl(p, out) for j, p in enumerate(said) if j != k]
            step(model, F.cross_entropy(out, y) + 0.7 * sum(others) / 3)
    require_same(history, models)


def test_co_teaching_steps_on_what_the_partner_finds_easy(on, models):
    history = trained(CoTeaching(forget=0.5, ramp=2), models, on, rounds=14)
    for t, (x, y) in enumerate(together(14)):
        keep = int((1 - 0.5 * min(t // 6 / 2, 1)) * BATCH)  # 96 examples are six batches
        losses = [F.cross_entropy(model(x), y, reduction="none") for model in models]
        chosen = [it.argsort()[:keep] for it in losses]
        for k, model in enumerate(models):
            step(model, losses[k][chosen[k ^ 1]].mean())
    assert keep == 8
    require_same(history, models)


WEIGHTS = torch.tensor([1.0] * 5 + [6.0] * 5)


@pytest.mark.parametrize("missing", [False, True], ids=["weighted", "weighted and some left out"])
def test_co_teaching_heeds_the_weights_of_classes_and_what_is_left_out(on, models, missing):
    """The criterion of the chosen examples alone is Σ w ℓ over them; all have the batch's mean weight for a unit."""
    y = SMALL.y.clone()
    y[::3] = -100 if missing else y[::3]
    weighted = partial(F.cross_entropy, weight=WEIGHTS)
    settings = {"batch_size": BATCH, "seed": SEED, "optimizer": partial(torch.optim.SGD, lr=LR), "loss": weighted}
    algorithm = CoTeaching(forget=0.5, ramp=1)
    history = lk.train(models, replace(SMALL, y=y), algorithm, rounds=10, on=on, **settings).result(60)
    stream = batches(range(len(SMALL)), BATCH, SEED, 0)
    for t in range(10):
        at = torch.from_numpy(next(stream))
        x, labels = SMALL.x[at], y[at]
        counts = labels >= 0
        unit = WEIGHTS[labels[counts]].sum() / BATCH
        losses = [weighted(model(x), labels, reduction="none") / unit for model in models]
        keep = int((1 - 0.5 * min(t // 6, 1)) * BATCH)
        chosen = [torch.where(counts, it.detach(), torch.inf).argsort()[:keep] for it in losses]
        for k, model in enumerate(models):
            step(model, losses[k][chosen[k ^ 1]].mean())
    require_same(history, models)


def test_an_example_that_costs_nothing_any_more_is_the_easiest_and_not_left_out(on, models):
    """A hinge loss is zero from a margin on."""
    sure = [copy.deepcopy(model) for model in models]
    with torch.no_grad():
        for model in sure:
            model[-1].weight *= 40  # most outputs are far apart: many examples cost nothing
    settings = {"batch_size": BATCH, "seed": SEED, "optimizer": partial(torch.optim.SGD, lr=LR)}
    y = SMALL.y.clone()
    for at in range(0, len(y), 2):
        y[at] = sure[0](SMALL.x[at : at + 1]).argmax()
    algorithm = CoTeaching(forget=0.5, ramp=1)
    history = lk.train(
        sure, replace(SMALL, y=y), algorithm, rounds=10, on=on, loss=F.multi_margin_loss, **settings
    ).result(60)
    stream, free = batches(range(len(SMALL)), BATCH, SEED, 0), 0
    for t in range(10):
        at = torch.from_numpy(next(stream))
        x, labels = SMALL.x[at], y[at]
        losses = [F.multi_margin_loss(model(x), labels, reduction="none") for model in sure]
        free += sum(int((it == 0).sum()) for it in losses)
        keep = int((1 - 0.5 * min(t // 6, 1)) * BATCH)
        chosen = [it.detach().argsort(stable=True)[:keep] for it in losses]
        for k, model in enumerate(sure):
            step(model, losses[k][chosen[k ^ 1]].mean())
    assert free > 20
    require_same(history, sure)


def test_co_teaching_plus_looks_only_at_what_the_partners_disagree_on(on, models):
    history = trained(CoTeachingPlus(forget=0.5, ramp=1, warmup=1), models, on, rounds=12)
    sizes = []
    for t, (x, y) in enumerate(together(12)):
        outs = [model(x) for model in models]
        losses = [F.cross_entropy(out, y, reduction="none") for out in outs]
        share = 1 - 0.5 * min(t // 6, 1)
        for k, model in enumerate(models):
            mine, theirs = outs[k].argmax(-1), outs[k ^ 1].argmax(-1)
            apart = (mine != theirs).nonzero().flatten() if t >= 6 else torch.arange(BATCH)
            keep = -int(-share * len(apart) // 1)  # rounded up
            easy = losses[k ^ 1][apart].argsort()[:keep]
            sizes.append(len(apart))
            if keep:
                step(model, losses[k][apart[easy]].mean())
    assert len(set(sizes)) > 3
    require_same(history, models)


def test_partners_that_agree_on_everything_learn_nothing():
    """The same weights see the same batches."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = mlp()
    history = trained(CoTeachingPlus(warmup=0), [model, copy.deepcopy(model)])
    require_same(history, [model, model])


def test_codistillation_learns_from_the_left_neighbour_as_it_was_when_the_round_began(on, models):
    history = trained(Codistillation(every=3, weight=0.6, warmup=1), models, on, rounds=3)
    shards = SMALL.shards(4, seed=SEED)
    streams = [batches(shards.indices[k], BATCH, SEED, k) for k in range(4)]
    for number in range(3):
        old = copy.deepcopy(models)
        for k, model in enumerate(models):
            for _ in range(3):
                at = torch.from_numpy(next(streams[k]))
                out = model(SMALL.x[at])
                loss = F.cross_entropy(out, SMALL.y[at])
                if number:
                    loss = loss + 0.6 * F.cross_entropy(out, old[k - 1](SMALL.x[at]).softmax(-1).detach())
                step(model, loss)
    require_same(history, models)


def test_distillation_is_a_weighted_mean_of_labels_and_softened_teacher(on, models):
    student, teacher = models[:2]
    before = copy.deepcopy(teacher.state_dict())
    everything = {"peers": 2, "shards": lk.data.Replicated()}
    history = trained(Distillation(teacher.train(), temperature=3.0, weight=0.4), student, on, **everything)
    for x, y in together(4):
        out = student(x)
        soft = kl(teacher(x).detach() / 3, out / 3)
        step(student, 0.6 * F.cross_entropy(out, y) + 0.4 * 9 * soft)
    require_same(history, [student, student])
    assert teacher.training and all(torch.equal(p, before[name]) for name, p in teacher.state_dict().items())


def public(number, count):
    """The public batches of round `number`."""
    stream = batches(range(len(PUBLIC)), BATCH, SEED, _PUBLIC + number)
    return [PUBLIC[torch.from_numpy(next(stream))] for _ in range(count)]


def test_fed_md_digests_the_consensus_and_revisits_its_own_data(on, models):
    history = trained(FedMD(every=2, public=3, warmup=1), models, on, rounds=3, public=PUBLIC)
    shards = SMALL.shards(4, seed=SEED)
    streams = [batches(shards.indices[k], BATCH, SEED, k) for k in range(4)]
    for number in (1, 2, 3):
        inputs = public(number, 3) if number > 1 else []
        consensus = [torch.stack([model(x).detach() for model in models]).mean(0) for x in inputs]
        for k, model in enumerate(models):
            for x, agreed in zip(inputs, consensus, strict=True):
                step(model, F.l1_loss(model(x), agreed))
            for _ in range(2):
                at = torch.from_numpy(next(streams[k]))
                step(model, F.cross_entropy(model(SMALL.x[at]), SMALL.y[at]))
    require_same(history, models)


def test_fed_df_distils_the_clients_mean_logits_into_their_mean(on, models):
    history = trained(FedDF(every=2, public=3, server_lr=0.01), models[0], on, rounds=2, peers=4, public=PUBLIC)
    shards = SMALL.shards(4, seed=SEED)
    streams = [batches(shards.indices[k], BATCH, SEED, k) for k in range(4)]
    server = models[0]
    for number in (1, 2):
        clients = [copy.deepcopy(server) for _ in range(4)]
        for client, stream in zip(clients, streams, strict=True):
            for _ in range(2):
                at = torch.from_numpy(next(stream))
                step(client, F.cross_entropy(client(SMALL.x[at]), SMALL.y[at]))
        with torch.no_grad():
            for p, *own in zip(server.parameters(), *(client.parameters() for client in clients), strict=True):
                p.copy_(torch.stack(own).mean(0))
        adam = torch.optim.Adam(server.parameters(), lr=0.01, eps=1e-4)
        for x in public(number, 3):
            agreed = torch.stack([client(x).detach() for client in clients]).mean(0)
            adam.zero_grad()
            kl(agreed, server(x)).backward()
            adam.step()
    require_same(history, [server] * 4, 1e-5)  # Adam makes more of rounding than SGD does


def test_an_ensemble_predicts_the_mean_of_its_members_probabilities(on, models):
    history = trained(Ensemble(every=5), models, on)
    with torch.no_grad():
        votes = torch.stack([model(SMALL.test_x).softmax(-1) for model in history.models]).mean(0)
    right = (votes.argmax(-1) == SMALL.test_y).float().mean()
    assert history.final.accuracies == (pytest.approx(float(right)),)


def test_one_forward_pass_serves_what_is_sent_and_what_is_learnt():
    """A second one would take longer, and draw other masks where there is dropout."""

    class Counting(nn.Linear):
        passes = 0

        def forward(self, x):
            Counting.passes += self.training and torch.is_grad_enabled()
            return super().forward(x)

    with torch.random.fork_rng():
        torch.manual_seed(1)
        pair = [Counting(64, 10), Counting(64, 10)]
    for algorithm in (Mutual(), CoTeaching(), CoTeachingPlus(warmup=0)):
        for _ in range(2):  # the first time, the models are tried before
            Counting.passes = 0
            trained(algorithm, pair, lk.Lockstep(), rounds=3)
        assert Counting.passes == 2 * 3


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator(block=2)], ids=["lockstep", "blocks"])
def test_fed_df_does_the_servers_work_alike_where_the_model_draws_random_numbers(on):
    def dropping():
        return torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 10))

    private, public = lk.data.load("digits").hold_out(0.3)
    run = lk.train(dropping, private, FedDF(every=2, public=2), peers=4, rounds=3, batch_size=16, public=public, on=on)
    assert len(run.result(60).rows) == 3


# -- teachers, and predictions on public inputs, are those of evaluation mode


def normalised():
    return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10))


@pytest.mark.parametrize(
    ("algorithm", "steps"),
    [
        (Codistillation(every=5, warmup=1), 3 * 5),
        (FedMD(every=5, public=2, warmup=1), 3 * 5 + 2 * 2),  # of which its digest is part
        (Distillation(normalised(), every=5), 3 * 5),
    ],
    ids=["Codistillation", "FedMD", "Distillation"],
)
def test_only_what_a_peer_learns_from_enters_its_running_statistics(on, algorithm, steps):
    history = lk.train(normalised, SMALL, algorithm, peers=2, rounds=3, on=on, batch_size=8, public=PUBLIC).result(60)
    assert [int(model[1].num_batches_tracked) for model in history.models] == [steps] * 2


@pytest.mark.parametrize("form", ["dict", "tuple", "object"])
def test_a_teacher_may_return_its_logits_in_what_it_likes(on, form):
    class Teacher(nn.Linear):
        def forward(self, x):
            logits = super().forward(x)
            return {"dict": {"logits": logits}, "tuple": (logits, x), "object": SimpleNamespace(logits=logits)}[form]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        student, teacher = nn.Linear(64, 10), Teacher(64, 10)
    plain = nn.Linear(64, 10)
    plain.load_state_dict(teacher.state_dict())
    one, other = (
        lk.train(student, SMALL, Distillation(it), peers=2, rounds=3, on=on, batch_size=8).result(60).models
        for it in (teacher, plain)
    )
    assert all(torch.equal(m.weight, n.weight) for m, n in zip(one, other, strict=True))


def test_a_teacher_takes_several_inputs_as_the_models_do(on):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, a, b):
            return self.layer(a + b)

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, k):
            return {"a": torch.full((4,), float(k % 3)), "b": torch.ones(4), "labels": k % 3}

    data = lk.data.from_torch(Pairs(), Pairs())
    run = lk.train(Two, data, Distillation(Two()), peers=2, rounds=3, on=on, batch_size=8)
    assert len(run.result(60).rows) == 3


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        (nn.Linear(64, 7), r"The teacher's outputs are of shape \(8, 7\), and the model's of \(8, 10\)"),
        (nn.Linear(63, 10), "The teacher, Linear, does not take the data's inputs"),
    ],
    ids=["fewer classes", "other inputs"],
)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_runs(on, teacher, says):
    with pytest.raises(ModelError, match=says):
        lk.train(nn.Linear(64, 10), SMALL, Distillation(teacher), peers=2, rounds=3, on=on, batch_size=8)


def test_a_teacher_speaks_without_dropout_and_by_running_statistics(on):
    """Two peers that stand still: the loss is λ CE(teacher, student) beside the labels', with both as they are."""

    @dataclass(frozen=True)
    class Spoken:
        def round(self, peer, batches):
            x, _ = next(batches)
            with peer.evaluating():
                first, second = (peer.logits(x, {n: 2 * p for n, p in peer.params.items()}) for _ in range(2))
            peer.log("apart", (first - second).abs().flatten(peer.ids.dim()).amax(-1))
            assert not first.requires_grad
            yield from ()

    history = lk.train(normalised, SMALL, Spoken(), peers=2, rounds=2, on=on, batch_size=8).result(60)
    assert history.rows[-1].logged["apart"] == (0.0, 0.0)
    assert int(history.models[0][1].num_batches_tracked) == 0


def test_what_fed_df_teaches_is_without_dropout():
    """All clients' models are the server's where nothing moves them, and say the same of the same inputs."""
    dropping = nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))
    still = partial(torch.optim.SGD, lr=0.0)
    settings = {"peers": 3, "rounds": 1, "public": PUBLIC, "optimizer": still, "batch_size": 8}
    for met in lk.step_through(dropping, SMALL, FedDF(1, public=1), **settings):
        assert met.same and all(torch.equal(met.sent[0], own) for own in met.sent if met.number == 2)


# -- who may differ, and who sees what


def test_students_of_different_architectures_learn_from_one_teacher(on):
    small, large, teacher = nn.Linear(64, 10), mlp(), normalised()
    history = trained(Distillation(teacher), [small, large, small], on, rounds=20)
    assert [type(model).__name__ for model in history.models] == ["Linear", "Sequential", "Linear"]
    alone = trained(Distillation(teacher), [small, large, small], lk.Lockstep(), rounds=20)
    require_same(history, alone.models, tolerance=1e-5)


def test_clients_of_different_architectures_are_refused_before_they_train(on):
    with pytest.raises(lk.errors.ExchangeError, match="no parameters that all of them share: give one model"):
        lk.train([nn.Linear(64, 10), mlp()], SMALL, FedDF(1), rounds=1, on=on, public=PUBLIC)


def test_members_of_an_ensemble_may_see_the_whole_set_each_in_its_own_order(on):
    everything = lk.data.Replicated(common_order=False)
    model = mlp()
    history = trained(Ensemble(6), [copy.deepcopy(model) for _ in range(3)], on, rounds=1, shards=everything)
    for k, member in enumerate(history.models):
        own = copy.deepcopy(model)
        stream = batches(range(len(SMALL)), BATCH, SEED, k)
        for _ in range(6):
            at = torch.from_numpy(next(stream))
            step(own, F.cross_entropy(own(SMALL.x[at]), SMALL.y[at]))
        for p, q in zip(member.parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-5)
    with pytest.raises(lk.errors.SettingError, match=r"compares what peers make of the same batches"):
        trained(Mutual(), [mlp(), mlp()], on, shards=everything)
