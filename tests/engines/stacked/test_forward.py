"""Stacked peers compute what as many ordinary models compute: outputs, gradients, statistics, losses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import labkit as lk
from labkit.algorithms import LocalSGD, Mutual
from labkit.engines.stacked.convolution import stacked_convolution
from labkit.engines.stacked.forward import stacked_forward
from labkit.engines.stacked.losses import stacked_loss
from tests.engines.experiments import difference, result

K, B = 4, 6
ROWS, SEQUENCE, IMAGE, TOKENS = (8,), (5, 8), (3, 8, 8), None


class SelfAttention(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x):
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


class InPlace(nn.Module):
    """What users write by hand: in-place operations, views of the batch, functions instead of layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2)
        self.last = nn.Linear(16, 2)

    def forward(self, x):
        x = F.relu_(self.first(x))
        x = F.max_pool2d(self.second(x), kernel_size=2)
        x += 1
        return self.last(x.view(x.size(0), -1))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, (3, 2), stride=(1, 2), bias=False),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    )


def transformer():
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


def tied():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    return model


LAYERS = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)), ROWS),
    "linear on sequences": (lambda: nn.Linear(8, 4), SEQUENCE),
    "tied weights": (tied, ROWS),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(5, 4, 3, padding=1), nn.MaxPool1d(2), nn.Conv1d(4, 3, 2), nn.AvgPool1d(3)),
        SEQUENCE,
    ),
    "conv2d": (convolutions, IMAGE),
    "conv2d, padding='same'": (lambda: nn.Conv2d(3, 4, 3, padding="same"), IMAGE),
    "conv2d, reflected border": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), IMAGE),
    "conv2d in groups, in place": (InPlace, IMAGE),
    "transposed convolution": (lambda: nn.ConvTranspose2d(3, 4, 3), IMAGE),
    "pooling that overlaps": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(3, 2, 1)),
        IMAGE,
    ),
    "layer norm": (lambda: nn.LayerNorm(8), SEQUENCE),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()), IMAGE),
    "batch norm 1d": (lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), ROWS),
    "batch norm 2d": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)), IMAGE),
    "batch norm without statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), IMAGE),
    "embedding": (lambda: nn.Embedding(11, 4), TOKENS),
    "embedding with padding": (lambda: nn.Embedding(11, 4, padding_idx=-1), TOKENS),
    "attention": (lambda: SelfAttention(False), SEQUENCE),
    "attention with weights": (lambda: SelfAttention(True), SEQUENCE),
    "transformer layer": (transformer, SEQUENCE),
    "transformer": (lambda: nn.TransformerEncoder(transformer(), 2, enable_nested_tensor=False), SEQUENCE),
}


def peers(make):
    """K ordinary models, and a model to stack them on with their parameters and buffers."""
    models = []
    for k in range(K):
        torch.manual_seed(k)
        models.append(make().double())
    named = [dict(model.named_parameters()) for model in models]
    parameters = {name: torch.stack([p[name].detach() for p in named]).requires_grad_() for name in named[0]}
    kept = [dict(model.named_buffers()) for model in models]
    buffers = {name: torch.stack([b[name] for b in kept]) for name in kept[0]}
    return models, copy.deepcopy(models[0]), parameters, buffers


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_stack_equals_a_loop_over_ordinary_models(name, mode):
    make, shape = LAYERS[name]
    models, model, parameters, buffers = peers(make)
    inputs = torch.randint(11, (K, B, 5)) if shape is None else torch.randn(K, B, *shape, dtype=torch.double)
    for each in (*models, model):
        each.train(mode == "train")
    for _ in range(2):  # running statistics move on
        found = stacked_forward(model, parameters | buffers, inputs)
        expected = torch.stack([one(x) for one, x in zip(models, inputs, strict=True)])
    torch.testing.assert_close(found, expected)

    pull = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, list(parameters.values()), pull)
    (expected * pull).sum().backward()
    for gradient, each in zip(gradients, zip(*(one.parameters() for one in models), strict=True), strict=True):
        torch.testing.assert_close(gradient, torch.stack([p.grad for p in each]))
    for buffer, each in zip(buffers.values(), zip(*(one.buffers() for one in models), strict=True), strict=True):
        torch.testing.assert_close(buffer, torch.stack(each))


@pytest.mark.parametrize("name", ["linear", "conv2d", "batch norm 2d", "transformer layer"])
def test_all_peers_are_evaluated_on_the_same_inputs(name):
    make, shape = LAYERS[name]
    models, model, parameters, buffers = peers(make)
    for each in (*models, model):
        each.eval()
    inputs = torch.randn(B, *shape, dtype=torch.double)
    with torch.no_grad():
        found = stacked_forward(model, parameters | buffers, inputs, shared=True)
        torch.testing.assert_close(found, torch.stack([one(inputs) for one in models]))


def test_what_is_not_stacked_is_the_models_own():
    """Frozen layers: one for all peers, convolution included."""
    models, model, parameters, _ = peers(convolutions)
    own = {name: p for name, p in parameters.items() if not name.startswith("0.")}
    for one in models:
        one[0].load_state_dict(model[0].state_dict())
    inputs = torch.randn(K, B, *IMAGE, dtype=torch.double)
    expected = torch.stack([one(x) for one, x in zip(models, inputs, strict=True)])
    torch.testing.assert_close(stacked_forward(model, own, inputs), expected)


def test_frozen_kernels_on_shared_inputs_are_the_same_for_all_peers():
    models, model, parameters, _ = peers(convolutions)
    own = {"7.weight": parameters["7.weight"]}
    inputs = torch.randn(B, *IMAGE, dtype=torch.double)
    found = stacked_forward(model.requires_grad_(False), own, inputs, shared=True)
    for k, one in enumerate(models):
        one.load_state_dict(model.state_dict() | {"7.weight": parameters["7.weight"][k]})
    torch.testing.assert_close(found, torch.stack([one(inputs) for one in models]))
    found.sum().backward()
    assert parameters["7.weight"].grad.abs().sum() > 0


def test_single_precision_agrees_to_its_rounding():
    torch.manual_seed(0)
    x, weight, bias = torch.rand(3, 2, 4, 9, 9), torch.rand(3, 5, 4, 3, 3), torch.rand(3, 5)
    found = stacked_convolution(x, weight, bias, (1, 1), (1, 1), (1, 1))
    expected = torch.stack([F.conv2d(*each, padding=1) for each in zip(x, weight, bias, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 2), (2, 3), (0, 1), (1, 2)),
    ((1, 4), (3, 1), (2, 3), (1, 1)),  # borders wider than the kernel: outputs that see no input
    ((2, 2), (4, 4), (0, 0), (3, 1)),  # inputs that no output sees
])  # fmt: skip
def test_a_convolution_has_the_gradients_of_torchs(kernel, stride, padding, dilation):
    torch.manual_seed(1)
    given = [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in (
        (K, B, 3, 7, 8), (K, 2, 3, *kernel), (K, 2)
    )]  # fmt: skip
    found = stacked_convolution(*given, stride, padding, dilation)
    expected = torch.stack([F.conv2d(*each, stride, padding, dilation) for each in zip(*given, strict=True)])
    torch.testing.assert_close(found, expected)
    pull = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, given, pull), torch.autograd.grad(expected, given, pull), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_each_peer_has_its_own_dropout_mask():
    model = nn.Dropout(0.5)
    masks = stacked_forward(model, {"unused": torch.zeros(K)}, torch.ones(K, 1, 100)) == 0
    assert 0.3 < masks.double().mean() < 0.7
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == K


def test_a_maximum_that_is_met_twice_gives_its_gradient_to_the_first_as_torch_does():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2))
    models, model, parameters, _ = peers(lambda: copy.deepcopy(model))
    inputs = torch.zeros(K, B, 1, 4, 4, dtype=torch.double).requires_grad_()
    (found,) = torch.autograd.grad(stacked_forward(model, parameters, inputs).sum(), inputs)
    (expected,) = torch.autograd.grad(sum(one(x).sum() for one, x in zip(models, inputs, strict=True)), inputs)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("make", "shape"), [
    (lambda: nn.LSTM(8, 4), SEQUENCE),
    (lambda: nn.GRU(8, 4), SEQUENCE),
    (lambda: nn.BatchNorm1d(8, momentum=None), ROWS),
], ids=["LSTM", "GRU", "BatchNorm1d"])  # fmt: skip
def test_a_layer_that_cannot_be_stacked_raises_torchs_error_which_the_trial_hears(make, shape):
    _, model, parameters, buffers = peers(make)
    with pytest.raises(RuntimeError, match=r"vmap|atching rule"):
        stacked_forward(model, parameters | buffers, torch.randn(K, B, *shape, dtype=torch.double))


def test_a_mistake_of_the_model_stays_torchs_error():
    _, model, parameters, _ = peers(lambda: nn.Linear(8, 4))
    with pytest.raises(RuntimeError, match="size"):
        stacked_forward(model, parameters, torch.randn(K, B, 7, dtype=torch.double))


@pytest.mark.parametrize("trailing", [(), (7,)])
def test_cross_entropy_of_each_peer_leaves_out_ignored_targets(trailing):
    torch.manual_seed(2)
    logits, targets = torch.randn(K, B, 5, *trailing), torch.randint(5, (K, B, *trailing))
    targets[1, :2] = -100
    expected = torch.stack([F.cross_entropy(*each) for each in zip(logits, targets, strict=True)])
    torch.testing.assert_close(stacked_loss(F.cross_entropy)(logits, targets), expected)


@pytest.mark.parametrize("criterion", [F.cross_entropy, F.mse_loss])
def test_losses_against_distributions_or_of_the_users_own_are_those_of_each_peer(criterion):
    torch.manual_seed(3)
    outputs, targets = torch.randn(K, B, 5), torch.rand(K, B, 5)
    expected = torch.stack([criterion(*each) for each in zip(outputs, targets, strict=True)])
    torch.testing.assert_close(stacked_loss(criterion)(outputs, targets), expected)


def test_peers_with_batch_norm_keep_running_statistics_of_their_own_when_stacked():
    def normalised():
        return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))

    runs = [result(on, LocalSGD(every=2), normalised, peers=3) for on in (lk.Lockstep(), lk.Simulator())]
    assert difference(*runs) < 1e-5
    for one, other in zip(runs[0].models, runs[1].models, strict=True):
        torch.testing.assert_close(one[1].running_var, other[1].running_var)
        assert one[1].num_batches_tracked == other[1].num_batches_tracked == 12
    assert [row.accuracies for row in runs[0].rows] == [row.accuracies for row in runs[1].rows]
    assert not torch.equal(runs[1].models[0][1].running_mean, runs[1].models[1][1].running_mean)


def test_peers_that_start_apart_keep_their_own_frozen_weights_when_stacked():
    def half_frozen():
        model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        model[0].requires_grad_(False)
        return model

    runs = [result(on, Mutual(), half_frozen, peers=3) for on in (lk.Lockstep(), lk.Simulator())]
    assert difference(*runs) < 1e-5
    assert not torch.equal(runs[1].models[0][0].weight, runs[1].models[1][0].weight)
    assert torch.equal(runs[0].models[2][0].weight, runs[1].models[2][0].weight)
