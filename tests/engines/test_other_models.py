"""Other people's models on real workers: what cannot be pickled or stacked, changes its inputs, or is kept frozen."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import Codistillation, LocalSGD
from labkit.errors import ModelError, SettingError
from tests.engines.experiments import difference, mlp, result

DIGITS = lk.data.load("digits")


class Normalises(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        x -= 0.5
        return self.net(x)


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Remembers(nn.Linear):
    mean = torch.zeros(64)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return super().forward(x - self.mean)


def orthogonal():
    return nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 10))


def frozen():
    net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    net[1].eval()
    return net


@pytest.mark.parametrize("model", [
    lambda: nn.utils.parametrizations.weight_norm(nn.Linear(64, 10)),
    orthogonal,
    Normalises,
    frozen,
    lambda: Branching(64, 10),
], ids=["weight_norm", "orthogonal", "normalises", "frozen", "branching"])  # fmt: skip
@pytest.mark.parametrize("peers", [2, 4])
def test_engines_agree_on_other_models_one_on_each_worker_or_in_blocks(lab, model, peers):
    one, other = (result(on, LocalSGD(2), model, peers=peers, rounds=3) for on in (lk.Lockstep(), lab))
    assert difference(one, other) < 1e-5
    assert one.final.accuracies == pytest.approx(other.final.accuracies, abs=1.5 / len(DIGITS.test_y))
    notes = [event.text for event in other.events if event.kind == "note"]
    assert bool(notes) == (peers == 4 and "Branching" in str(other.settings["model"]))


def test_a_model_that_changes_its_inputs_leaves_the_workers_data_to_those_that_come_after(lab):
    before = result(lab, LocalSGD(2), rounds=2)
    result(lab, LocalSGD(2), Normalises, rounds=2)
    assert difference(before, result(lab, LocalSGD(2), rounds=2)) == 0


def test_layers_that_stand_twice_are_the_peers_own_on_workers(lab):
    def twice():
        layer = nn.Linear(32, 32)
        return nn.Sequential(nn.Linear(64, 32), layer, nn.ReLU(), layer, nn.Linear(32, 10))

    runs = [result(on, Codistillation(2, warmup=0), twice, rounds=3) for on in (lk.Lockstep(), lab)]
    assert difference(*runs) < 1e-5


def test_what_cannot_be_sent_is_named_as_the_user_wrote_it_before_anything_runs(lab):
    lock = threading.Lock()

    def locked(outputs, targets):
        with lock:
            return nn.functional.cross_entropy(outputs, targets)

    with pytest.raises(SettingError, match=r"^The loss \(locked\) cannot be sent to the workers"):
        lk.train(mlp, DIGITS, loss=locked, on=lab)
    with pytest.raises(ModelError, match=r"outside of its parameters and buffers.*register_buffer"):
        lk.train(lambda: Remembers(64, 10), DIGITS, on=lab)
