"""A run's fingerprint: whatever decides its result changes it, and says what it is; the rest does not."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce, DiLoCo, LocalSGD
from labkit.engines.digest import digest
from labkit.engines.fingerprint import difference, fingerprint
from labkit.training.plan import plan
from labkit.training.settings import Settings
from tests.engines.experiments import ADAM, MOMENTUM, SGD

DIGITS = lk.data.load("digits")
SHARPNESS = 2.0


class Net(nn.Module):
    def __init__(self, activation=nn.functional.relu, names=("b", "a")):
        super().__init__()
        self.inner, self.outer, self.names = nn.Linear(64, 8), nn.Linear(8, 10), frozenset(names)
        self.activation = activation

    def forward(self, x):
        return self.outer(self.activation(self.inner(x)))


class Deeper(Net):
    def forward(self, x):
        return self.outer(self.activation(self.activation(self.inner(x))))


class Mine:
    """An algorithm whose representation tells where it lies in memory."""

    every = 2

    def round(self, peer, batches):
        for batch in peer.local(batches, 2):
            peer.step(peer.loss(batch))
        yield lk.exchange.Mean(peer.params)


class Changed(Mine):
    def round(self, peer, batches):
        for batch in peer.local(batches, 2):
            peer.step(tuple(-it for it in peer.loss(batch)) if False else peer.loss(batch))
        yield lk.exchange.Mean(peer.params)


Changed.__name__ = Changed.__qualname__ = "Mine"


def sharper(outputs):
    return SHARPNESS * outputs


def loss(outputs, targets):
    return nn.functional.cross_entropy(sharper(outputs), targets)


def of(**settings):
    settings = {"algorithm": LocalSGD(2), "peers": 2, "rounds": 5, "optimizer": MOMENTUM, "loss": loss} | settings
    return fingerprint(plan(Settings(settings.pop("model", Net), settings.pop("dataset", DIGITS), **settings))[1])


def twisted(tensor):
    return tensor.roll(1, 0)


def unstable(outputs, targets):
    return nn.functional.cross_entropy(sharper(outputs), targets, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("what", "settings"),
    [
        ("the loss", {"loss": unstable}),
        ("the loss", {"loss": partial(loss)}),
        ("the loss", {"loss": nn.CrossEntropyLoss(weight=torch.ones(10))}),
        ("the model", {"model": partial(Net, nn.functional.gelu)}),
        ("the model", {"model": Deeper}),
        ("the model", {"model": partial(nn.Sequential, nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))}),
        ("the data", {"dataset": dataclasses.replace(DIGITS, x=twisted(DIGITS.x))}),
        ("the data", {"dataset": dataclasses.replace(DIGITS, y=twisted(DIGITS.y))}),
        ("the shards", {"shards": lk.data.Dirichlet(1.0)}),
        ("the algorithm", {"algorithm": LocalSGD(3)}),
        ("the optimizer", {"optimizer": partial(torch.optim.SGD, lr=0.06, momentum=0.9, weight_decay=1e-4)}),
        ("the optimizer", {"optimizer": ADAM}),
        ("the schedule", {"schedule": partial(torch.optim.lr_scheduler.StepLR, step_size=3)}),
        ("the precision", {"precision": "bf16"}),
        ("the clip", {"clip": 1.0}),
        ("the seed", {"seed": 1}),
        ("the batch size", {"batch_size": 8}),
        ("the peers", {"peers": 3}),
        ("the batches", {"rounds": None, "epochs": 1, "algorithm": AllReduce()}),
    ],
)
def test_what_decides_the_result_changes_it_and_is_named(what, settings):
    named = difference(of(), of(**settings))
    assert any(it == what or it.startswith(f"{what} (") for it in named), named


def test_a_number_that_the_loss_takes_from_its_module_decides_too(monkeypatch):
    before = of()
    monkeypatch.setitem(globals(), "SHARPNESS", 3.0)
    assert difference(before, of()) == ["the loss"]


@pytest.mark.filterwarnings("error")
def test_arrays_that_nobody_may_write_to_count_by_their_numbers():
    """As those that come from a file, of which torch would warn."""
    one, same, other = np.arange(6.0), np.arange(6.0), np.arange(1.0, 7.0)
    one.flags.writeable = False
    assert digest(one) == digest(same) != digest(other)
    assert digest(np.array(["a"])) != digest(np.array(["b"])) and digest(np.zeros((0, 2))) != digest(np.zeros(0))


def test_code_of_ones_own_counts_and_where_it_lies_in_memory_does_not():
    assert difference(of(algorithm=Mine()), of(algorithm=Mine())) == []
    assert difference(of(algorithm=Mine()), of(algorithm=Changed())) == ["the algorithm"]


@pytest.mark.parametrize("settings", [{"rounds": 9}, {"model": Net()}, {"evaluate_every": 2}])
def test_what_does_not_decide_changes_nothing(settings):
    """More rounds, other first weights, how often the models are tested."""
    assert difference(of(), of(**settings)) == []


def test_another_process_comes_to_the_same():
    program = "from tests.engines.test_fingerprint import *; print(of(algorithm=DiLoCo(every=3), optimizer=SGD))"
    env = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{of(algorithm=DiLoCo(every=3), optimizer=SGD)}\n"


def test_a_stream_that_cannot_be_counted_has_one_too():
    from tests.data.items import Flow

    settings = {"dataset": lk.data.from_torch(Flow()), "algorithm": AllReduce()}
    assert difference(of(**settings), of(**settings)) == []


@dataclasses.dataclass
class Config:
    scale: float


SETTINGS = {"scale": 2.0}
CONFIG = Config(2.0)
SPACE = SimpleNamespace(scale=2.0)
WEIGHT = torch.ones(10)


def by_a_dict(outputs, targets):
    return SETTINGS["scale"] * nn.functional.cross_entropy(outputs, targets)


def by_an_object(outputs, targets):
    return CONFIG.scale * nn.functional.cross_entropy(outputs, targets)


def by_a_namespace(outputs, targets):
    return SPACE.scale * nn.functional.cross_entropy(outputs, targets)


def by_a_tensor(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, weight=WEIGHT)


@pytest.mark.parametrize(
    ("loss", "name", "changed"),
    [
        (by_a_dict, "SETTINGS", {"scale": 3.0}),
        (by_an_object, "CONFIG", Config(3.0)),
        (by_a_namespace, "SPACE", SimpleNamespace(scale=3.0)),
        (by_a_tensor, "WEIGHT", 2 * torch.ones(10)),
    ],
)
def test_whatever_the_loss_reads_from_its_module_decides_too(monkeypatch, loss, name, changed):
    before = of(loss=loss)
    assert difference(before, of(loss=loss)) == []
    monkeypatch.setitem(globals(), name, changed)
    assert difference(before, of(loss=loss)) == ["the loss"]
