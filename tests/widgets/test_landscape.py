"""The landscape widget: its walks are those of the algorithms, and it opens where something is wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import EASGD, AllReduce, Gossip, LocalSGD, ParameterServer
from labkit.errors import SettingError
from labkit.tasks.split import Partition
from labkit.widgets.landscape import _START, METHODS, compute, landscape
from tests.widgets.traits import changes

PEERS, EVERY, STEPS, RATE = 4, 3, 12, 0.05
ALGORITHMS = {
    "all-reduce": AllReduce(),
    "local SGD": LocalSGD(EVERY),
    "EASGD": EASGD(every=EVERY),
    "gossip": Gossip("ring", every=EVERY),
    "server": ParameterServer(),
}


class Place(nn.Module):
    """A model that is a place on the plane, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor(_START, dtype=torch.float32))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.z.expand(len(inputs), 2)


@pytest.mark.parametrize("method", METHODS)
def test_its_walks_are_those_of_the_algorithm(method: str) -> None:
    """Peer i holds one example, whose target is its floor and the matrix of its valley."""
    made = compute(method, PEERS, EVERY, RATE, steps=STEPS)
    wanted = torch.tensor(np.concatenate([made.floors, made.bends.reshape(PEERS, 4)], axis=1), dtype=torch.float32)
    data = lk.data.Tensors("valleys", torch.zeros(PEERS, 1), wanted, torch.zeros(1, 1), wanted[:1], 0)

    def valley(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        off, bend = z - target[:, :2], target[:, 2:].reshape(-1, 2, 2)
        return (off[:, None] @ bend @ off[..., None]).mean() / 2

    settings: dict[str, Any] = {
        "loss": valley,
        "batch_size": 1,
        "optimizer": partial(torch.optim.SGD, lr=RATE),
        "shards": Partition(range(PEERS), tuple(np.array([k]) for k in range(PEERS)), "a valley each"),
    }
    rounds = STEPS if method in ("all-reduce", "server") else STEPS // EVERY
    on = lk.Simulator() if method == "server" else lk.Lockstep()
    run = lk.train(Place, data, ALGORITHMS[method], peers=PEERS, rounds=rounds, on=on, **settings).result()
    got = np.stack([model.z.detach().numpy() for model in run.models])
    want = made.paths[method][-1]
    np.testing.assert_allclose(got, want[[-1] * PEERS] if method == "server" else want, atol=1e-5)  # the server's own


def test_it_opens_on_a_drift_that_meeting_more_often_mends() -> None:
    view = landscape()
    assert "not where all together" in view.sentence.value
    view.controls["every"].value = 1
    assert "not where all together" not in view.sentence.value


def test_without_skew_all_come_to_the_same_place() -> None:
    made = compute(skew=0.0, steps=400)
    for method in METHODS:
        np.testing.assert_allclose(made.paths[method][-1], 0, atol=1e-3)


def test_every_control_moves_something_and_a_bound_is_a_sentence() -> None:
    view = landscape("gossip")
    for name, value in {"method": "EASGD", "peers": 6, "every": 4, "rate": 0.05, "skew": 0.5, "noise": 1.0}.items():
        assert changes(view, name, value), name
    view.controls["rate"].value = 0.4
    view.controls["method"].value = "all-reduce"
    assert view.controls["every"].disabled
    with pytest.raises(SettingError, match="method"):
        compute("walk")


def test_steps_that_are_too_large_are_told() -> None:
    made = compute("local SGD", rate=0.9, every=30)
    assert not made.ok and "climbs out of its valley" in made.sentence
