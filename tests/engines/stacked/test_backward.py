"""The gradients of stacked peers along their layers' way back are autograd's, and an optimiser misses nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import labkit as lk
from labkit.algorithms import FedAvg, LocalSGD
from labkit.engines.stacked.backward import one_node, way_back
from labkit.engines.stacked.forward import StackedModel
from labkit.engines.stacked.losses import cross_entropy_and_back, stacked_loss
from tests.engines.experiments import SGD, difference, mlp, result
from tests.engines.stacked.test_forward import B, K, peers

CHAINS = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)), (8,)),
    "one layer": (lambda: nn.Linear(8, 3), (8,)),
    "nothing to learn at both ends": (
        lambda: nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(8, 3), nn.Identity(), nn.Unflatten(1, (3, 1))),
        (4, 2),
    ),
    "in place": (
        lambda: nn.Sequential(nn.ELU(inplace=True), nn.Linear(8, 6), nn.LeakyReLU(inplace=True), nn.Linear(6, 3)),
        (8,),
    ),
    "every curve": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Softplus(), nn.Linear(8, 2)),
        (8,),
    ),
    "pictures": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, (2, 3), bias=False), nn.ReLU(),
            nn.MaxPool2d(2, 1, 1), nn.Conv2d(5, 2, 2, stride=2), nn.AvgPool2d(2, 1, 1), nn.Flatten(), nn.Linear(12, 3),
        ),
        (3, 8, 8),
    ),
    "pictures whose numbers are averaged": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2, padding=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (3, 8, 8),
    ),
    "sequences": (lambda: nn.Sequential(nn.Conv1d(5, 4, 3, padding=1), nn.Tanh(), nn.Conv1d(4, 3, 2)), (5, 8)),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(2, 3, (2, 3, 2), padding=1), nn.ReLU()), (2, 4, 5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_the_way_back_gives_the_gradients_of_ordinary_models(name):
    make, shape = CHAINS[name]
    models, model, parameters, _ = peers(make)
    stacked = StackedModel(model, parameters)
    assert stacked.known
    inputs = torch.randn(K, B, *shape, dtype=torch.double)
    given = inputs.clone()
    with torch.no_grad():
        outputs, back, _ = stacked.passed(parameters, inputs)
    expected = torch.stack([one(x.clone()) for one, x in zip(models, inputs, strict=True)])
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(inputs, given)

    pull = torch.randn_like(expected)
    with torch.no_grad():
        found = back(pull)
    (expected * pull).sum().backward()
    for parameter, each in zip(parameters, zip(*(one.parameters() for one in models), strict=True), strict=True):
        torch.testing.assert_close(found[parameter], torch.stack([p.grad for p in each]))


def test_models_whose_layers_are_not_all_known_are_autograds():
    def hooked():
        model = mlp()
        model[1].register_forward_hook(lambda *_: None)
        return model

    for make in (
        lambda: nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5)),
        lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)),
        lambda: nn.Sequential(nn.Linear(8, 4), nn.Softmax(-1)),
        nn.ReLU,
        hooked,
    ):
        _, model, parameters, buffers = (
            peers(make) if next(make().parameters(), None) is not None else (0, make(), {}, {})
        )
        assert not StackedModel(model, parameters | buffers).known
    _, model, parameters, _ = peers(lambda: nn.Linear(8, 4))
    with torch.no_grad():
        assert StackedModel(model, parameters).passed(parameters, torch.randn(K, B, 5, 8)) is None


def test_cross_entropy_and_its_gradients():
    torch.manual_seed(4)
    logits, targets = torch.randn(K, B, 5, dtype=torch.double, requires_grad=True), torch.randint(5, (K, B))
    expected, pull = stacked_loss(F.cross_entropy)(logits, targets), torch.rand(K, dtype=torch.double)
    with torch.no_grad():
        losses, back = cross_entropy_and_back(logits, targets)
    torch.testing.assert_close(losses, expected)
    for d in (None, pull):
        (gradient,) = torch.autograd.grad(expected, logits, pull if d is pull else torch.ones(K), retain_graph=True)
        torch.testing.assert_close(back(d), gradient)


@pytest.fixture
def node():
    """Outputs of stacked peers as one node, the parameters of that node, and the same outputs by autograd."""
    _, model, parameters, _ = peers(CHAINS["every curve"][0])
    stacked, inputs = StackedModel(model, parameters), torch.randn(K, B, 8, dtype=torch.double)
    with torch.no_grad():
        passed = stacked.passed(parameters, inputs)
    again = partial(stacked, inputs=inputs)
    return one_node(*passed, parameters, again), parameters, again(parameters)


def test_a_node_can_be_differentiated_like_any_other(node):
    def twice(outputs):
        values = list(parameters.values())
        first = torch.autograd.grad(outputs.square().sum(), values, create_graph=True)
        return first, torch.autograd.grad(sum(g.square().sum() for g in first), values)

    outputs, parameters, expected = node
    torch.testing.assert_close(twice(outputs), twice(expected))


def test_a_node_knows_when_its_parameters_have_changed(node):
    outputs, parameters, _ = node
    assert way_back(outputs, parameters) is not None
    with torch.no_grad():
        next(reversed(parameters.values())).add_(0)  # a bias, which no gradient needs
        parameters["5.weight"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        way_back(outputs, parameters)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


def test_autograd_goes_back_where_somebody_looks_on_or_more_than_the_loss_counts(node):
    outputs, parameters, _ = node
    assert way_back(outputs + 0.1, parameters) is None
    assert way_back(outputs, dict(parameters)) is None  # those of other peers
    outputs += 1  # as an algorithm may do
    assert way_back(outputs, parameters) is None
    watched = outputs * 1
    watched.register_hook(lambda gradient: None)
    assert way_back(watched, parameters) is None


def pooled():
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10)
    )


OPTIMIZERS = {
    "SGD": SGD,
    "weight decay": partial(torch.optim.SGD, lr=0.1, weight_decay=0.01),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "uphill": partial(torch.optim.SGD, lr=0.001, maximize=True),
    "Adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.01),
    "AMSGrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.01, lr_decay=0.1),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.001, momentum=0.5),
    "one after the other": partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=False),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("algorithm", [FedAvg(every=3), LocalSGD(every=3)])
def test_every_optimiser_agrees_with_lockstep(name, algorithm):
    runs = [
        result(on, algorithm, pooled, peers=3, optimizer=OPTIMIZERS[name]) for on in (lk.Lockstep(), lk.Simulator())
    ]
    assert difference(*runs) < 1e-5


def test_a_schedule_and_a_norm_to_clip_to_are_kept():
    halved = partial(torch.optim.lr_scheduler.StepLR, step_size=4, gamma=0.5)
    for settings in ({"schedule": halved}, {"clip": 0.1}, {"schedule": halved, "clip": 0.1}):
        runs = [result(on, LocalSGD(every=3), peers=3, **settings) for on in (lk.Lockstep(), lk.Simulator())]
        assert difference(*runs) < 1e-5
        assert runs[0].rows[-1].learning_rate == runs[1].rows[-1].learning_rate


def test_who_looks_at_an_optimisers_steps_sees_them_all():
    seen = []

    def watched(params):
        optimizer = torch.optim.SGD(params, lr=0.1)
        optimizer.register_step_post_hook(lambda *_: seen.append([p.grad is not None for p in params]))
        return optimizer

    result(lk.Simulator(), LocalSGD(every=3), peers=3, rounds=2, optimizer=watched)
    assert seen[-6:] == [[True] * 4] * 6  # before that, it was tried


@dataclass(frozen=True)
class Partly(LocalSGD):
    """Every batch's first target is left out, as F.cross_entropy does with -100, or is no class at all."""

    first: int = -100

    def round(self, peer, batches):
        for _ in range(self.every):
            inputs, targets = next(batches)
            targets = targets.clone()
            targets[..., 0] = self.first
            peer.step(peer.loss((inputs, targets)))
        peer.params = yield lk.exchange.Mean(peer.params)


def test_targets_that_are_left_out_count_on_no_engine():
    runs = [result(on, Partly(every=2), peers=3) for on in (lk.Lockstep(), lk.Simulator())]
    assert difference(*runs) < 1e-5


def test_a_target_that_is_no_class_is_torchs_error_on_every_engine():
    for on in (lk.Lockstep(), lk.Simulator()):
        with pytest.raises(IndexError, match="Target 10 is out of bounds"):
            result(on, Partly(every=2, first=10), peers=3)


@dataclass(frozen=True)
class Doing(LocalSGD):
    """Every step as `step(peer, batch)` takes it."""

    step: object = None

    def round(self, peer, batches):
        for _ in range(self.every):
            self.step(peer, next(batches))
        peer.params = yield lk.exchange.Mean(peer.params)


def changed_inputs(peer, batch):
    loss = peer.loss(batch)
    batch[0].add_(1.0)
    peer.step(loss)


def changed_targets(peer, batch):
    loss = peer.loss(batch)
    batch[1].fill_(0)
    peer.step(loss)


def gradients_twice(peer, batch):
    loss = peer.loss(batch)
    peer.gradients(loss)
    peer.step(loss)


def step_without_autograd(peer, batch):
    loss = peer.loss(batch)
    with torch.no_grad():
        peer.step(loss)


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (changed_inputs, "modified by an inplace operation"),
        (changed_targets, "modified by an inplace operation"),
        (gradients_twice, "a second time"),
        (step_without_autograd, "does not require grad"),
    ],
)
@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=lambda it: it.name)
def test_what_autograd_refuses_is_refused_on_every_engine(on, step, says):
    with pytest.raises(RuntimeError, match=says):
        result(on, Doing(every=1, step=step), peers=3, rounds=1)


def kept_gradient(peer, batch):
    loss = peer.loss(batch)
    loss.sum().backward(retain_graph=True)
    loss.retain_grad()
    peer.step(loss)
    assert loss.grad is not None


def test_a_gradient_of_the_loss_that_is_to_be_kept_is_kept():
    runs = [result(on, Doing(every=2, step=kept_gradient), peers=3) for on in (lk.Lockstep(), lk.Simulator())]
    assert difference(*runs) < 1e-5


@dataclass(frozen=True)
class MixedFirst(LocalSGD):
    """The loss, then the mean, then the step, as decentralised SGD has it (arXiv:1705.09056, Alg. 1)."""

    def round(self, peer, batches):
        loss = peer.loss(next(batches))
        peer.params = yield lk.exchange.Mean(peer.params)
        peer.step(loss)


def test_weights_that_no_gradient_needs_may_change_before_the_step():
    runs = [result(on, MixedFirst(), lambda: nn.Linear(64, 10), peers=3) for on in (lk.Lockstep(), lk.Simulator())]
    assert difference(*runs) < 1e-5
    for on in (lk.Lockstep(), lk.Simulator()):  # those of a second layer are needed
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result(on, MixedFirst(), peers=3)


def replaced():
    model = mlp()
    model[1].forward = torch.sin
    return model


def test_a_layer_whose_forward_was_replaced_computes_that():
    runs = [result(on, LocalSGD(every=2), replaced, peers=3) for on in (lk.Lockstep(), lk.Simulator())]
    assert difference(*runs) < 1e-5
    assert difference(runs[0], result(lk.Lockstep(), LocalSGD(every=2), peers=3)) > 1e-4


@pytest.mark.parametrize(("classes", "batch_size"), [(8, 8), (4, 4), (4, 8)])
def test_pixels_are_classified_alike_whatever_the_sizes(classes, batch_size):
    torch.manual_seed(0)
    pictures, pixels = torch.rand(96, 1, 8, 8), torch.randint(4, (96, 8, 8))
    data = lk.data.from_torch(torch.utils.data.TensorDataset(pictures, pixels))
    model = nn.Sequential(nn.Conv2d(1, classes, 3, padding=1))
    runs = [
        lk.train(model, data, LocalSGD(every=2), peers=3, rounds=3, batch_size=batch_size, on=on).result()
        for on in (lk.Lockstep(), lk.Simulator())
    ]
    assert difference(*runs) < 1e-5
