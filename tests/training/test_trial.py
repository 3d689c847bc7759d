"""What the trial finds before anything runs: other people's models, losses and optimisers are right, or refused."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from time import process_time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import labkit as lk
from labkit.algorithms import EASGD, SCAFFOLD, AllReduce, Codistillation, FedAvg, FedProx, LocalSGD
from labkit.errors import DivergenceError, ModelError
from labkit.training import trial
from tests.engines.experiments import MOMENTUM, SGD, convolution, difference, mlp, parameters

DIGITS = lk.data.load("digits")
HERE = lk.Lockstep(), lk.Simulator()


def trained(on, model=mlp, algorithm=None, data=DIGITS, **settings):
    settings = {"peers": 2, "rounds": 6, "batch_size": 16, "seed": 3, "optimizer": SGD} | settings
    return lk.train(model, data, algorithm, on=on, **settings).result(timeout=60)


def agree(*given, **settings):
    """Both engines' histories, which agree."""
    runs = [trained(on, *given, **settings) for on in HERE]
    assert difference(*runs) < 1e-5
    return runs


def refused(says, *given, error=ModelError, **settings):
    for on in HERE:
        with pytest.raises(error, match=says) as caught:
            trained(on, *given, **settings)
        text = str(caught.value)
        assert "\n" not in text and text.endswith(".") and len(text) < 400


def one_by_one(history):
    """Whether the peers of a simulator were not stacked, and why."""
    said = [event.text for event in history.events if event.kind == "note"]
    assert bool(said) == (history.settings.get("stacked") is False)
    return said[0] if said else ""


# -- optimisers


def by_shape(kind, **rest):
    """No decay for biases, known by their shape."""

    def grouped(params):
        params = list(params)
        flat = [p for p in params if p.dim() < 2]
        deep = [p for p in params if p.dim() > 1]
        return kind([{"params": deep, "weight_decay": 0.3}, {"params": flat, "weight_decay": 0.0}], **rest)

    return grouped


def by_fan_in(params):
    return torch.optim.SGD([{"params": [p], "lr": 1.0 / p.numel() ** 0.5} for p in params])


@pytest.mark.parametrize("optimizer", [
    by_shape(torch.optim.SGD, lr=0.1, momentum=0.9),
    by_shape(torch.optim.AdamW, lr=1e-3),
    by_shape(torch.optim.Adagrad, lr=1e-2),
    by_fan_in,
], ids=["SGD", "AdamW", "Adagrad", "fan-in"])  # fmt: skip
@pytest.mark.parametrize("model", [mlp, convolution])
def test_groups_known_by_the_shapes_of_parameters_are_those_of_one_peer(optimizer, model):
    _, stacked = agree(model, LocalSGD(2), optimizer=optimizer, peers=3)
    assert not one_by_one(stacked)


class Whole(torch.optim.Optimizer):
    """Steps of one length, whatever the gradients: it looks at all numbers of a tensor at once."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.grad / (p.grad.norm() + 1e-8)


class Signs(torch.optim.Optimizer):
    """Somebody's own, which looks at each number by itself."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.grad.tanh()


def clamped(params):
    """Gradients are cut as a whole, by a hook that only large ones show."""
    params = list(params)
    optimizer = torch.optim.SGD(params, lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(params, 20.0) and None)
    return optimizer


@pytest.mark.parametrize(("optimizer", "stacked"), [(Whole, False), (Signs, True), (clamped, False)])
def test_optimisers_of_somebodys_own_are_stacked_where_each_number_steps_by_itself(optimizer, stacked):
    _, history = agree(mlp, LocalSGD(2), optimizer=optimizer, peers=3)
    assert (not one_by_one(history)) == stacked


def other_tensors(params):
    return torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=0.1)


def two_of_them(params):
    one, other = params
    return torch.optim.SGD([one, other], lr=0.1)


@pytest.mark.parametrize(("optimizer", "says"), [
    (torch.optim.LBFGS, "LBFGS wants a closure.*SGD or Adam"),
    (other_tensors, "other tensors than those it is given"),
    (two_of_them, r"optimizer function fails.*too many values"),
])  # fmt: skip
def test_optimisers_that_cannot_train_peers_are_refused(optimizer, says):
    refused(says, optimizer=optimizer)


def test_an_optimizer_function_may_want_exactly_the_models_parameters():
    agree(lambda: nn.Linear(64, 10), optimizer=two_of_them)


# -- schedules

CYCLE = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1)
LISTED = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=[1.0, 0.5, 0.25, 0.1].__getitem__)


@pytest.mark.parametrize(("schedule", "steps", "says"), [
    (partial(CYCLE, total_steps=11), 12, "OneCycleLR ends before the 12 steps"),
    (LISTED, 12, "LambdaLR ends before the 12 steps"),
])  # fmt: skip
def test_a_schedule_that_ends_before_the_run_is_refused(schedule, steps, says):
    refused(says, mlp, LocalSGD(2), schedule=schedule, rounds=steps // 2)


def test_a_schedule_that_lasts_as_long_as_the_run_is_right_also_where_a_round_is_one_step():
    agree(mlp, LocalSGD(2), schedule=partial(CYCLE, total_steps=12), rounds=6)
    agree(mlp, AllReduce(accumulate=2), schedule=partial(CYCLE, total_steps=6), rounds=6)
    agree(mlp, FedAvg(2), schedule=partial(CYCLE, total_steps=12), rounds=6)
    _, stacked = agree(mlp, LocalSGD(2), schedule=partial(CYCLE, total_steps=2), rounds=1)
    assert not one_by_one(stacked)


# -- losses

LOSSES = {
    "each": (partial(F.cross_entropy, reduction="none"), r"loss gives \[16\]"),
    "of one": (lambda o, t: F.cross_entropy(o, t)[None], r"loss gives \[1\]"),
    "float": (lambda o, t: F.cross_entropy(o, t).item(), "loss gives a float"),
    "pair": (lambda o, t: (F.cross_entropy(o, t), 0), "loss gives a tuple"),
    "whole number": (lambda o, t: F.cross_entropy(o, t).long(), "a number of type int64"),
    "detached": (lambda o, t: F.cross_entropy(o, t).detach(), "a number without a gradient"),
    "of nothing": (lambda o, t: torch.tensor(1.0), "a number without a gradient"),
    "key": (lambda o, t: o["logits"], r"do not fit digits"),
    "assertion": (lambda o, t: exec("assert False, 'not so'"), r"do not fit digits \(not so\)"),
    "class": (nn.CrossEntropyLoss, "loss is the class CrossEntropyLoss"),
}


@pytest.mark.parametrize(("loss", "says"), LOSSES.values(), ids=LOSSES)
def test_a_loss_that_is_no_number_with_a_gradient_is_refused(loss, says):
    refused(says, loss=loss)


def test_a_loss_that_is_a_sum_is_right_and_one_whose_way_depends_on_its_value_is_not_stacked():
    agree(loss=partial(F.cross_entropy, reduction="sum"), optimizer=partial(torch.optim.SGD, lr=1e-3))

    def branching(outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        return loss if loss < 1 else loss.sqrt()

    _, stacked = agree(loss=branching)
    assert "cannot stack" in one_by_one(stacked)


def test_class_numbers_below_zero_are_refused_and_those_that_a_loss_ignores_are_not():
    x = torch.randn(300, 4)
    signs = lk.data.from_tensors(x, torch.where(x.sum(1) > 0, 1, -1))
    for loss in (F.cross_entropy, nn.CrossEntropyLoss()):
        refused("map the class numbers, which begin with -1, to 0…C−1", lambda: nn.Linear(4, 2), data=signs, loss=loss)
    agree(lambda: nn.Linear(4, 2), data=signs, loss=nn.CrossEntropyLoss(ignore_index=-1))
    gaps = lk.data.from_tensors(x, torch.where(x.sum(1) > 0, 1, torch.where(x[:, 0] > 0, 0, -100)))
    agree(lambda: nn.Linear(4, 2), data=gaps)
    hidden = torch.ones(300, dtype=torch.long)
    hidden[7] = -1
    refused("begin with -1", lambda: nn.Linear(4, 2), data=lk.data.from_tensors(x, hidden, test_share=0.0))


# -- models: what they change


class Normalises(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        x -= 0.5
        x /= 0.5
        return self.net(x)


class NormalisesInEvaluation(Normalises):
    def forward(self, x):
        return self.net(x) if self.training else super().forward(x)


@pytest.mark.parametrize("model", [
    Normalises,
    NormalisesInEvaluation,
    lambda: nn.Sequential(nn.Hardtanh(-0.5, 0.5, inplace=True), mlp()),
    lambda: nn.Sequential(nn.ReLU(inplace=True), mlp()),
    lambda: nn.Sequential(nn.Threshold(0.5, 0.0, inplace=True), nn.BatchNorm1d(64), mlp()),
])  # fmt: skip
@pytest.mark.parametrize("algorithm", [LocalSGD(2), Codistillation(2, warmup=0)], ids=repr)
def test_a_model_that_changes_its_inputs_never_changes_the_users_data(model, algorithm):
    data = lk.data.from_tensors(DIGITS.x - 0.2, DIGITS.y)
    kept = [each.clone() for each in (data.x, data.test_x)]
    histories = agree(model, algorithm, data=data, evaluate_every=1)
    assert all(map(torch.equal, kept, (data.x, data.test_x)))
    for history in histories:
        with torch.no_grad():
            right = (history.models[0](data.test_x.clone()).argmax(1) == data.test_y).float().mean()
        assert history.final.accuracies[0] == pytest.approx(float(right))
        assert not history.models[0]._forward_pre_hooks


def test_a_loss_that_changes_its_targets_never_changes_the_users_data():
    def shifted(outputs, targets):
        targets.clamp_(max=8)
        return F.cross_entropy(outputs, targets)

    kept = DIGITS.y.clone(), DIGITS.test_y.clone()
    agree(loss=shifted)
    assert all(map(torch.equal, kept, (DIGITS.y, DIGITS.test_y)))


class Centred(nn.Module):
    """Keeps a running mean in a buffer, which each forward pass assigns anew."""

    def __init__(self, persistent=True):
        super().__init__()
        self.net = mlp()
        self.register_buffer("mean", torch.zeros(64), persistent=persistent)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return self.net(x - self.mean)


def test_buffers_that_forward_assigns_anew_are_kept_by_stacked_peers():
    runs = agree(Centred, LocalSGD(2), peers=3)
    assert not one_by_one(runs[1])
    for one, other in zip(runs[0].models, runs[1].models, strict=True):
        torch.testing.assert_close(one.mean, other.mean)
    assert runs[1].models[0].mean.abs().max() > 0.1
    assert not torch.equal(runs[1].models[0].mean, runs[1].models[1].mean)


class Remembers(Centred):
    """The same in an attribute that is no buffer."""

    def __init__(self):
        super().__init__()
        del self.mean
        self.mean = torch.zeros(64)


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.steps = mlp(), 0

    def forward(self, x):
        self.steps += self.training
        return self.net(x) * min(1.0, self.steps / 5)


class Dice(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x) * (1 + random.random() * self.training)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x if x.sum() > 0 else -x)


ALONE = {
    "an attribute": (Remembers, "outside of parameters and buffers"),
    "a count": (Counts, "the number 'steps'"),
    "a branch": (Branching, "torch cannot stack them"),
    "LSTM": (lambda: nn.Sequential(nn.Unflatten(1, (8, 8)), First(nn.LSTM(8, 6)), nn.Flatten(), nn.Linear(48, 10)), ""),
}


class First(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)[0]


@pytest.mark.parametrize(("model", "says"), ALONE.values(), ids=ALONE)
def test_what_cannot_be_stacked_is_computed_one_by_one_with_a_note(model, says):
    _, stacked = agree(model, LocalSGD(2), peers=3)
    assert says in one_by_one(stacked) != ""
    assert stacked.clock == "wall"
    virtual = trained(lk.Simulator(speeds=[1, 2, 2], step_seconds=0.1), model, LocalSGD(2), peers=3)
    assert virtual.clock == "virtual" and virtual.seconds == pytest.approx(1.2)


def test_random_numbers_of_pythons_are_not_drawn_for_a_whole_stack():
    assert "Python's or NumPy's" in one_by_one(trained(lk.Simulator(), Dice))


# -- models: what they are made of


def twice():
    layer = nn.Linear(32, 32)
    return nn.Sequential(nn.Linear(64, 32), layer, nn.ReLU(), layer, nn.Linear(32, 10))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(64, 64), nn.Linear(64, 64, bias=False), nn.Linear(64, 10)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.out(self.two(self.one(x).relu()))


@pytest.mark.parametrize("model", [twice, Tied])
@pytest.mark.parametrize("algorithm", [Codistillation(3, warmup=0), EASGD(3), LocalSGD(2), FedProx(2)], ids=repr)
def test_layers_and_weights_that_stand_at_two_places_are_the_peers_own(model, algorithm):
    agree(model, algorithm, peers=3)


@pytest.mark.parametrize("made", [
    lambda: nn.utils.parametrizations.weight_norm(nn.Linear(64, 10)),
    lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(64, 32)), nn.ReLU(), nn.Linear(32, 10)),
    lambda: nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 10)),
    lambda: nn.DataParallel(mlp()),
    lambda: nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyBatchNorm1d(), nn.LazyLinear(10)),
    lambda: nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(10)),
], ids=["weight_norm", "spectral_norm", "orthogonal", "DataParallel", "lazy", "lazy pictures"])  # fmt: skip
def test_models_made_in_other_ways(made):
    agree(made, LocalSGD(2))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_older_weight_norm_whose_weight_is_computed_can_be_copied():
    agree(lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(64, 32)), nn.ReLU(), nn.Linear(32, 10)))


def test_lazy_models_take_their_shapes_with_the_runs_seed_and_a_given_one_stays_lazy():
    lazy = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(10))
    one, other, another = (trained(None, lambda: lazy, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(parameters(one), parameters(other)) and not torch.equal(parameters(one), parameters(another))
    trained(None, lazy)
    assert lazy[0].has_uninitialized_params()


class Locked(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
        self.lock = __import__("threading").Lock()


class Turning(nn.Module):
    def __init__(self):
        super().__init__()
        self.turn = nn.Parameter(torch.randn(64, 10, dtype=torch.cfloat))

    def forward(self, x):
        return (x.to(torch.cfloat) @ self.turn).abs()


def hooked():
    net = nn.Linear(64, 10)
    net.weight.register_hook(lambda g: 0 * g)
    return net


@pytest.mark.parametrize(("model", "says"), [
    (lambda: nn.Linear(64, 10, device="meta"), "'weight' of Linear is on the meta device"),
    (lambda: torch.compile(nn.Linear(64, 10), backend="eager"), "wrapped in OptimizedModule.*give the module inside"),
    (lambda: torch.jit.script(mlp()), "RecursiveScriptModule.*give the module inside"),
    (lambda: nn.Linear(64, 10).double(), r"type float32, as model.to\(torch.float32\) does"),
    (lambda: nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(256, 10)), "type float32"),
    (Locked, "Locked cannot be copied"),
    (hooked, "hook on the parameter 'weight' of Linear"),
    (lambda: 1 / 0, "The model function fails"),
    (nn.Linear, "The model function fails"),
    (Turning, "'turn' of Turning is complex, and peers exchange real numbers"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_that_cannot_be_trained_are_refused(model, says):
    refused(says, model)


class Words(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.table, self.head = nn.Embedding(rows, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.table(x).mean(1))


@pytest.mark.parametrize("where", ["trained on", "tested on"])
@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
def test_a_vocabulary_that_is_too_small_for_any_example_says_how_many_rows_it_needs(on, where):
    tokens, labels = torch.randint(0, 20, (400, 3)), torch.arange(400) % 2
    data = lk.data.from_tensors(tokens, labels)
    part = data.x if where == "trained on" else data.test_x
    part[len(part) // 2, 1] = 31
    with pytest.raises(ModelError, match="token numbers up to 31, and its Embedding 20 rows: give it 32 or more"):
        lk.train(Words(20), data, peers=2, rounds=2, batch_size=4, on=on)
    lk.train(Words(32), data, peers=2, rounds=2, batch_size=4, on=on).result(60)
    part[3, 0] = -1
    with pytest.raises(ModelError, match="counts tokens from 0, and the data have -1"):
        lk.train(Words(32), data, peers=2, rounds=2, batch_size=4, on=on)


def test_a_loss_with_other_tensors_in_it_is_another_loss():
    """With weights and smoothing together torch cannot stack it, and with one of them alone it can."""
    trial._known.clear()
    for weight in (None, torch.arange(1.0, 11.0)):
        loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
        run = lk.train(mlp, DIGITS, peers=2, rounds=2, loss=loss)
        run.result(60)
        assert [event.kind for event in run.history.events] == ["note"] * (weight is not None)


@pytest.mark.parametrize("algorithm", [None, LocalSGD(every=2), lk.algorithms.FedAvg(every=2, participation=0.5)])
@pytest.mark.parametrize("sparse", [False, True])
def test_sparse_gradients_are_those_of_dense_ones(algorithm, sparse):
    def net(sparse):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Embedding(9, 4, sparse=sparse), nn.Flatten(), nn.Linear(12, 2))

    data = lk.data.from_tensors(torch.randint(0, 9, (80, 3)), torch.arange(80) % 2)
    adam = partial(torch.optim.Adam, lr=0.01)
    one, other = (
        lk.train(net(is_sparse), data, algorithm, peers=2, rounds=3, batch_size=4, optimizer=adam, on=on).result(60)
        for is_sparse, on in ((False, lk.Lockstep()), (sparse, lk.Simulator()))
    )
    pairs = zip(one.models[0].parameters(), other.models[0].parameters(), strict=True)
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in pairs)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.arange(40) % 3 + 1, "class numbers go from 1 to 3, and the model has 3 outputs: map them"),
        (torch.arange(40)[:, None] % 3, r"not a column of them, such as y\[:, 0\]"),
    ],
)
def test_class_numbers_that_the_model_has_no_output_for_or_in_a_column_are_told(labels, says):
    data = lk.data.from_tensors(torch.randn(40, 3), labels)
    with pytest.raises(ModelError, match=says):
        lk.train(nn.Linear(3, 3), data, peers=2, rounds=2, batch_size=4)


@pytest.mark.parametrize(
    ("loss", "model", "targets", "says"),
    [
        (
            nn.BCEWithLogitsLoss(),
            nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)),
            "ints",
            r"real numbers, y\.float\(\): give",
        ),
        (
            nn.BCEWithLogitsLoss(),
            nn.Linear(3, 1),
            "ints",
            r"real numbers, y\.float\(\), of the outputs' shape, such as y\[",
        ),
        (
            nn.CrossEntropyLoss(),
            nn.Linear(3, 2),
            "floats",
            r"class numbers as integers, y\.long\(\): give such targets",
        ),
    ],
)
def test_targets_of_another_kind_than_the_loss_takes_are_told_with_what_it_takes(loss, model, targets, says):
    y = torch.arange(40) % 2
    data = lk.data.from_tensors(torch.randn(40, 3), y if targets == "ints" else y.float())
    with pytest.raises(ModelError, match=says):
        lk.train(model, data, peers=2, rounds=2, batch_size=4, loss=loss)


# -- frozen parts


def frozen():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 10))
    for _ in range(20):
        net(DIGITS.x[:256])
    net[:2].requires_grad_(False)
    net[1:3].eval()
    return net


class KeepsItFrozen(nn.Sequential):
    """The idiom of those who fine-tune: train() leaves the norm in evaluation mode."""

    def train(self, mode=True):
        super().train(mode)
        self[0][1:3].eval()
        return self


@pytest.mark.parametrize("make", [frozen, lambda: KeepsItFrozen(frozen()), lambda: KeepsItFrozen(frozen()).eval()])
@pytest.mark.parametrize("algorithm", [LocalSGD(2), FedAvg(2), FedAvg(2, participation=0.5)], ids=repr)
def test_layers_in_evaluation_mode_inside_of_a_training_model_stay_so(make, algorithm):
    net = make()
    norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm1d))
    before = norm.running_mean.clone()
    for history in agree(net, algorithm, data=lk.data.from_tensors(3 * DIGITS.x + 1, DIGITS.y), evaluate_every=1):
        after = next(module for module in history.models[0].modules() if isinstance(module, nn.BatchNorm1d))
        assert torch.equal(after.running_mean, before) and after.num_batches_tracked == norm.num_batches_tracked


@pytest.mark.parametrize("model", [
    lambda: nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10)),
    lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(64, 32)), nn.Linear(32, 10)),
    Centred,
    Remembers,
])  # fmt: skip
@pytest.mark.parametrize("algorithm", [FedAvg(2), SCAFFOLD(2)], ids=repr)
def test_what_clients_would_lose_between_rounds_is_refused(model, algorithm):
    refused("which a server's clients and asynchronous peers lose", model, algorithm)


# -- parameters without a part in the loss


class Partly(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
        self.unused = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    "algorithm",
    [AllReduce(), AllReduce(accumulate=2), LocalSGD(1), FedProx(1, mu=0.0), FedAvg(1), SCAFFOLD(1)],
    ids=repr,
)
def test_parameters_without_a_part_in_the_loss_stand_still(algorithm):
    decays = partial(MOMENTUM, weight_decay=0.1)
    for history in agree(Partly, algorithm, optimizer=decays):
        assert torch.equal(history.models[0].unused, torch.ones(3))
    if isinstance(algorithm, AllReduce) and algorithm.every == 1:
        assert difference(*(trained(None, Partly, it, optimizer=decays) for it in (algorithm, LocalSGD(1)))) < 1e-5


def test_allreduce_of_peers_that_would_not_stay_one_model_is_refused():
    rates = [partial(torch.optim.SGD, lr=rate) for rate in (0.1, 0.2)]
    refused("given different optimisers", mlp, AllReduce(), optimizer=rates)
    refused("start from different weights", [mlp(), mlp()], AllReduce())
    agree(mlp, AllReduce(), optimizer=[partial(torch.optim.SGD, lr=0.1) for _ in range(2)])
    agree(mlp, LocalSGD(1), optimizer=rates)


# -- outputs


class InDict(nn.Linear):
    def forward(self, x):
        return {"logits": super().forward(x), "aux": x.mean()}


class InPair(nn.Linear):
    def forward(self, x):
        return super().forward(x), x.mean()


class Output:
    def __init__(self, logits):
        self.logits = logits


class InObject(nn.Linear):
    def forward(self, x):
        return Output(super().forward(x))


@pytest.mark.parametrize(("model", "find"), [
    (InDict, lambda out: out["logits"]), (InPair, lambda out: out[0]), (InObject, lambda out: out.logits),
])  # fmt: skip
@pytest.mark.parametrize("algorithm", [AllReduce(), Codistillation(2, warmup=0), FedAvg(2)], ids=repr)
def test_the_loss_receives_what_forward_returned_and_evaluation_its_logits(model, find, algorithm):
    def loss(outputs, targets):
        return F.cross_entropy(find(outputs), targets)

    for history in agree(lambda: model(64, 10), algorithm, loss=loss, rounds=30):
        with torch.no_grad():
            right = find(history.models[0](DIGITS.test_x)).argmax(1) == DIGITS.test_y
        assert history.final.accuracies[0] == pytest.approx(float(right.float().mean()), abs=0.01)


def test_outputs_without_logits_are_refused():
    class Scores(nn.Linear):
        def forward(self, x):
            return {"scores": super().forward(x)}

    refused(
        "without a tensor of outputs", lambda: Scores(64, 10), loss=lambda out, t: F.cross_entropy(out["scores"], t)
    )


# -- hooks


def test_hooks_on_layers_and_global_ones_are_heeded_by_every_engine():
    def doubled():
        net = mlp()
        net[0].register_forward_hook(lambda module, given, out: 2 * out)
        net[2].register_full_backward_hook(lambda module, grads, _: tuple(g and None for g in ()) or None)
        return net

    agree(doubled)
    plain = trained(lk.Simulator())
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, given, out: 2 * out if isinstance(module, nn.ReLU) else None
    )
    try:
        _, stacked = agree()
    finally:
        handle.remove()
    assert difference(plain, stacked) > 1e-3


# -- last batches


def test_the_last_batch_of_an_epoch_is_tried_where_it_is_one_example():
    x = torch.randn(33, 4)
    data = lk.data.from_tensors(x, (x[:, 0] > 0).long(), test_share=0.0)
    normal = lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))  # noqa: E731
    refused("last batch of an epoch, of 1 example", normal, data=data, peers=1, rounds=None, epochs=2, batch_size=16)
    refused("BatchNorm needs batches of two examples or more", normal, data=data, peers=1, batch_size=1)
    agree(normal, data=data, peers=1, rounds=None, epochs=2, batch_size=11)
    agree(mlp, LocalSGD(1))


# -- the trial itself


def test_the_trial_leaves_model_data_loss_and_random_numbers_alone():
    net = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10))
    before = {name: it.clone() for name, it in net.state_dict().items()}
    kept = DIGITS.x.clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    trial._known.clear()
    trained(lk.Simulator(), net, rounds=1)
    assert all(torch.equal(it, before[name]) for name, it in net.state_dict().items())
    assert torch.equal(DIGITS.x, kept) and all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_the_same_code_and_shapes_are_tried_once_and_other_code_again(monkeypatch):
    tries = []
    findings = trial.Trial.findings
    monkeypatch.setattr(trial.Trial, "findings", lambda self: tries.append(1) or findings(self))
    trial._known.clear()

    def cell(scale, width=10):
        class Net(nn.Linear):
            def forward(self, x):
                return super().forward(x) * scale

        return lambda: Net(64, width)

    for model in (cell(1.0), cell(1.0), cell(2.0), cell(1.0, 11)):
        lk.train(model, DIGITS, peers=2, rounds=1).result(timeout=60)
    assert len(tries) == 3
    lk.train(cell(1.0), DIGITS, peers=2, rounds=1, loss=lambda o, t: F.cross_entropy(o, t)).result(timeout=60)
    lk.train(cell(1.0), DIGITS, peers=2, rounds=1, optimizer=partial(torch.optim.SGD, lr=0.2)).result(timeout=60)
    assert len(tries) == 5


def test_the_trial_of_a_small_model_takes_little():
    trained(lk.Simulator(), mlp, rounds=1)  # what is loaded once
    taken = []
    for width in range(20, 25):
        engine, experiment = lk.Simulator(), None
        run = lk.train(lambda w=width: nn.Sequential(nn.Linear(64, w), nn.ReLU(), nn.Linear(w, 10)), DIGITS, rounds=1)
        experiment = run._experiment
        run.result(timeout=60)
        trial._known.clear()
        begun = process_time()
        trial.tried(engine, experiment)
        taken.append(process_time() - begun)
    assert min(taken) < 0.25  # an order of magnitude more than it takes on a machine that does nothing else


@pytest.mark.parametrize("loss", [nn.functional.mse_loss, nn.functional.l1_loss, lambda o, t: ((o - t) ** 2).mean()])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_outputs_that_would_be_compared_with_all_targets_are_refused(loss):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        ModelError, match=r"each with all others: give targets of the outputs' shape, such as y\[:, None\]"
    ):
        lk.train(nn.Linear(3, 1), lk.data.from_tensors(x, x.sum(1)), peers=2, rounds=2, batch_size=8, loss=loss)
    squeezed = lambda o, t: nn.functional.mse_loss(o.squeeze(-1), t)  # noqa: E731
    assert (
        lk.train(nn.Linear(3, 1), lk.data.from_tensors(x, x.sum(1)), peers=2, rounds=2, batch_size=8, loss=squeezed)
        .result()
        .rows
    )
    assert lk.train(
        nn.Linear(3, 1), lk.data.from_tensors(x, x.sum(1)[:, None]), peers=2, rounds=2, batch_size=8, loss=loss
    ).result()


def test_a_run_on_infinite_data_says_nothing_about_later_ones():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 0).long()
    bad = replace(lk.data.from_tensors(x, y), x=torch.where(x[:48] > 1, torch.inf, x[:48]))
    with pytest.raises(DivergenceError):
        lk.train(nn.Linear(3, 2), bad, peers=2, rounds=3, batch_size=8).result()
    clean = lk.train(nn.Linear(3, 2), lk.data.from_tensors(x, y), peers=2, rounds=3, batch_size=8).result()
    assert not clean.events and "unstacked" not in clean.settings


def test_a_schedule_that_lacks_its_settings_is_told():
    with pytest.raises(ModelError, match=r"The schedule function fails on an optimiser .*step_size"):
        lk.train(nn.Linear(64, 10), lk.data.load("digits"), peers=2, rounds=2, schedule=torch.optim.lr_scheduler.StepLR)
