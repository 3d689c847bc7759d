"""Anyone's model, anyone's task: random combinations agree on the engines, or are refused before anything runs.

A combination follows from its number alone: `combination(77)` says what number 77 is, and `outcome(combination(77))`
tries it again.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import labkit as lk
from labkit import algorithms as a, exchange as x
from labkit.errors import DivergenceError, LabkitError

TOLERANCE = 1e-5  # of parameters and losses, or so many times the number where it is large
MANY, FEW, TOGETHER = 3000, 150, 10

# -- tasks: (dataset, loss, inputs, outputs of a model)

DIGITS = lk.data.load("digits")
INPUTS = DIGITS.x[:360]


def _task(targets: Any, **given: Any) -> lk.data.Tensors:
    return lk.data.from_tensors(INPUTS, targets, **given)


def flat(fn):
    return lambda outputs, targets: fn(outputs.squeeze(-1), targets.float())


LABELS = DIGITS.y[:360]
TASKS = {
    "classes": (_task(LABELS), F.cross_entropy, 10),
    "classes, weighted": (_task(LABELS), nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, 10)), 10),
    "classes, smoothed": (_task(LABELS), partial(F.cross_entropy, label_smoothing=0.1), 10),
    "unknown classes": (_task(LABELS.masked_fill(LABELS == 3, -1)), nn.CrossEntropyLoss(ignore_index=-1), 10),
    "too few outputs": (_task(LABELS), F.cross_entropy, 9),
    "a number": (_task(INPUTS.mean(1)), flat(F.mse_loss), 1),
    "numbers": (_task(INPUTS[:, :3]), nn.SmoothL1Loss(), 3),
    "one logit": (_task((LABELS > 4).long()), flat(F.binary_cross_entropy_with_logits), 1),
    "several labels": (_task(torch.stack([LABELS > 3, LABELS % 2 == 0], 1).float()), nn.BCEWithLogitsLoss(), 2),
    "probabilities": (_task(torch.softmax(INPUTS[:, :4], 1)), F.cross_entropy, 4),
    "a sum": (_task(LABELS), partial(F.cross_entropy, reduction="sum"), 10),
    "one each": (_task(LABELS), partial(F.cross_entropy, reduction="none"), 10),
}

# -- models, by the number of their outputs


def mlp(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, outputs))


def linear(outputs: int) -> nn.Module:
    return nn.Linear(64, outputs)


def normalised(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, outputs))


def pictures(outputs: int) -> nn.Module:
    convolution = nn.Conv2d(1, 3, 3, padding=1)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), convolution, nn.GroupNorm(1, 3), nn.GELU(), nn.Flatten(), nn.LazyLinear(outputs)
    )


def twice(outputs: int) -> nn.Module:
    layer = nn.Linear(12, 12)
    return nn.Sequential(nn.Linear(64, 12), layer, nn.Tanh(), layer, nn.Linear(12, outputs))


def frozen(outputs: int) -> nn.Module:
    net = normalised(outputs)
    net[0].requires_grad_(False)
    net[1].eval()
    return net


def parametrized(outputs: int) -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(64, 12)), nn.Tanh(), nn.Linear(12, outputs))


def recurrent(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (8, 8)), First(nn.GRU(8, 6)), nn.Flatten(), nn.Linear(48, outputs))


class First(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Any) -> Any:
        return self.net(x)[0]


class Around(nn.Module):
    """A small network, and what somebody does around it."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.net, self.unused = mlp(outputs), nn.Parameter(torch.ones(2))
        self.register_buffer("mean", torch.zeros(64))


class InPlace(Around):
    def forward(self, x: Any) -> Any:
        x -= 0.1
        return self.net(x)


class Assigns(Around):
    def forward(self, x: Any) -> Any:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.net(x - self.mean)


class Branching(Around):
    def forward(self, x: Any) -> Any:
        return self.net(x if x.mean() > 0.3 else 2 * x)


class Skips(Around):
    def forward(self, x: Any) -> Any:
        hidden = self.net[1](self.net[0](x))
        return self.net[2](hidden + hidden.sin()) / (2.0 if self.training else 1.0)


class InTuple(Around):
    def forward(self, x: Any) -> Any:
        return self.net(x), x.mean()


MODELS = [
    *(mlp, linear, normalised, pictures, twice, frozen, parametrized, recurrent),
    *(InPlace, Assigns, Branching, Skips, InTuple),
]

# -- algorithms and what goes around them

EVERY = [1, 2]
ALGORITHMS = [
    a.AllReduce,
    lambda: a.AllReduce(accumulate=2),
    *(partial(kind, every=every) for kind in (a.Independent, a.LocalSGD, a.Ensemble) for every in EVERY),
    *(partial(kind, every=2) for kind in (a.FedAvg, a.FedProx, a.FedAvgM, a.FedDyn, a.SCAFFOLD, a.FedAdam, a.FedNova)),
    *(partial(kind, every=2, participation=0.5) for kind in (a.FedAvg, a.SCAFFOLD)),
    *(partial(kind, epochs=1) for kind in (a.FedAvg, a.FedProx)),
    *(a.Gossip, a.Mutual, a.DiLoCo, a.EASGD, a.PostLocalSGD, a.Codistillation),
    lambda: a.PostLocalSGD(every=2, warmup=1),
    lambda: a.Codistillation(2, warmup=0),
    lambda: a.Gossip("complete", every=2),
    lambda: a.CoTeaching(ramp=1),
    lambda: a.FedMD(every=2, public=1, warmup=1),
    lambda: a.FedDF(every=2, public=1),
]
WRAPPERS = [
    *[lambda inner: inner] * 5,
    lambda inner: a.Compressed(inner, x.TopK(0.3)),
    lambda inner: a.Compressed(inner, x.RandomK(0.3)),
    lambda inner: a.Robust(inner, x.CoordinateMedian()),
    lambda inner: a.Private(inner, clip=0.5, noise=0.1),
    lambda inner: a.PowerSGD(inner, rank=1),
    a.Secure,
]

# -- optimisers


def by_shape(params: Any) -> torch.optim.Optimizer:
    params = list(params)
    groups = [[p for p in params if (p.dim() > 1) == deep] for deep in (True, False)]
    return torch.optim.AdamW(
        [{"params": it, "weight_decay": decay} for it, decay in zip(groups, (0.3, 0.0), strict=True)], lr=1e-3, eps=1e-3
    )


class Whole(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p -= 0.01 * p.grad / (p.grad.norm() + 1e-2)


SGD = partial(torch.optim.SGD, lr=0.01)
OPTIMIZERS = [
    SGD,
    SGD,
    partial(torch.optim.SGD, lr=0.005, momentum=0.9, weight_decay=0.01, nesterov=True),
    partial(torch.optim.Adam, lr=1e-3, eps=1e-3),  # a small ε would let rounding decide where gradients are none
    partial(torch.optim.RMSprop, lr=1e-3, eps=1e-2),
    partial(torch.optim.Adagrad, lr=1e-2, eps=1e-2),
    by_shape,
    Whole,
    torch.optim.LBFGS,
]


@dataclass(frozen=True)
class Combination:
    number: int
    task: str
    model: Any
    algorithm: Any
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        named = {name: getattr(value, "__name__", value) for name, value in self.settings.items()}
        return f"combination({self.number}): {self.task}, {self.model.__name__}, {self.algorithm}, {named}"


def combination(number: int) -> Combination | LabkitError:
    """The combination of that number, or the error of an algorithm and a wrapper that do not go together."""
    draw = random.Random(number)
    settings = {
        "optimizer": draw.choice(OPTIMIZERS),
        "peers": draw.choice([2, 3, 4]),
        "rounds": draw.choice([2, 3]),
        "batch_size": draw.choice([4, 8]),
        "seed": draw.randrange(100),
        "clip": draw.choice([None, None, None, 0.5]),
        "block": draw.choice([None, None, 1, 2]),
    }
    if draw.random() < 0.15:
        settings["schedule"] = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)
    if draw.random() < 0.2:
        settings["shards"] = lk.data.Quantity(2.0)
    task, model = draw.choice([*TASKS]), draw.choice(MODELS)
    algorithm, wrapper = draw.choice(ALGORITHMS), draw.choice(WRAPPERS)
    try:
        return Combination(number, task, model, wrapper(algorithm()), settings)
    except LabkitError as error:
        return error


def outcome(given: Combination | LabkitError, lab: Any = None) -> str:
    """ "agrees" or "refused", in the simulator or on a lab; AssertionError, or whatever is raised, for all else."""
    if isinstance(given, LabkitError):
        return "refused"
    data, loss, outputs = TASKS[given.task]
    if given.model is InTuple:
        loss = partial(_of_first, loss)
    settings = dict(given.settings)
    block = settings.pop("block")
    engines = lk.Lockstep(), lab or lk.Simulator(block=block)
    private, public = data.hold_out(0.2)
    ran, kept = [], private.x.clone()
    for on in engines:
        try:
            run = lk.train(
                partial(given.model, outputs), private, given.algorithm, loss=loss, public=public, on=on, **settings
            )
        except LabkitError as error:
            return "refused" if "\n" not in str(error) else f"refused in more than a sentence: {error}"
        try:
            ran.append(run.result(timeout=60))
        except DivergenceError as error:  # as where the loss ignores every target of a batch
            ran.append(str(error))
    assert torch.equal(private.x, kept), "data were changed"
    if any(isinstance(it, str) for it in ran):
        assert ran[0] == ran[1]
    else:
        _require_agreement(*ran)
    return "agrees"


def _of_first(loss: Any, outputs: Any, targets: Any) -> Any:
    return loss(outputs[0] if isinstance(outputs, tuple) else outputs, targets)


def _require_agreement(one: lk.History, other: lk.History) -> None:
    for mine, same in zip(one.models, other.models, strict=True):
        for (name, p), (_, q) in zip(mine.state_dict().items(), same.state_dict().items(), strict=True):
            torch.testing.assert_close(
                p, q, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda said, name=name: f"{name}: {said}"
            )
    for row, twin in zip(one.rows, other.rows, strict=True):
        assert row.losses == pytest.approx(twin.losses, rel=TOLERANCE, abs=TOLERANCE, nan_ok=True)
        if row.test_losses is not None:
            assert row.test_losses == pytest.approx(twin.test_losses, rel=TOLERANCE, abs=TOLERANCE)
    if other.ledger == "formula":  # peers that share a worker send less than each by itself would
        assert one.bytes == pytest.approx(other.bytes)


def require_all(numbers: range) -> Counter[str]:
    """Each of the combinations of these numbers agrees or is refused; those that do not are told together."""
    found: Counter[str] = Counter()
    wrong = []
    for number in numbers:
        given = combination(number)
        try:
            found[outcome(given)] += 1
        except Exception as error:  # noqa: BLE001  whatever it is
            wrong.append(f"{given!r}\n    {type(error).__name__}: {str(error).strip()[:300]}")
    wrong += [outcome for outcome in found if outcome not in ("agrees", "refused")]
    assert not wrong, f"{len(wrong)} of {len(numbers)} neither agree nor are refused:\n" + "\n".join(wrong)
    return found


@pytest.mark.parametrize("start", range(0, FEW, TOGETHER))
def test_random_combinations_agree_on_both_engines_or_are_refused(start):
    require_all(range(start, start + TOGETHER))


@pytest.mark.parametrize("number", [3, 6, 8, 13])
def test_some_of_them_agree_on_workers_too(lab, number):
    assert outcome(combination(number), lab) in ("agrees", "refused")


@pytest.mark.claims
@pytest.mark.parametrize("start", range(FEW, FEW + MANY, 100))
def test_many_random_combinations_agree_on_both_engines_or_are_refused(start):
    found = require_all(range(start, start + 100))
    assert found["agrees"] > 30, "most of what is tried can be trained"
