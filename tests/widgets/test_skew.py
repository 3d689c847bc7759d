"""The data-skew widget: it deals the digits as trainings do, and its rounds are those of the algorithms."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.errors import LabkitError
from labkit.widgets import skew
from labkit.widgets.data_skew import METHODS, RATE, compute
from tests.widgets.traits import changes

# -- compute


def test_it_deals_as_a_training_does() -> None:
    digits = lk.data.load("digits")
    parts = digits.shards(5, lk.data.Dirichlet(0.3, least=4), seed=2).indices
    counts = [np.bincount(digits.y[part], minlength=10) for part in parts]
    assert np.array_equal(compute(alpha=0.3, clients=5, seed=2).counts, counts)


def test_equally_many_steps_make_fednova_fedavg() -> None:
    made = compute(epochs=False)
    assert made.accuracy["FedNova"] == pytest.approx(made.accuracy["FedAvg"])
    made = compute(epochs=True)
    assert made.accuracy["FedNova"][-1] > made.accuracy["FedAvg"][-1] + 0.1


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_all_clients_is_that_of_the_algorithm(method: str) -> None:
    """With one step on nearly the whole shard; the model has no bias but a constant input, and starts at zero."""
    digits = lk.data.load("digits")
    one = torch.eye(10)
    inputs = [torch.nn.functional.pad(x, (0, 1), value=1.0) for x in (digits.x, digits.test_x)]
    data = lk.data.Tensors("digits", inputs[0], one[digits.y], inputs[1], one[digits.test_y], 0)
    shards = digits.shards(4, lk.data.Dirichlet(100.0, least=4), seed=0)

    def zero() -> torch.nn.Module:
        model = torch.nn.Linear(65, 10, bias=False)
        torch.nn.init.zeros_(model.weight)
        return model

    settings = {"loss": lambda x, y: (x - y).square().sum(-1).mean() / 2, "batch_size": 350, "shards": shards,
                "optimizer": partial(torch.optim.SGD, lr=RATE)}  # fmt: skip
    algorithm = getattr(lk.algorithms, method)(every=1)
    run = lk.train(zero, data, algorithm, peers=4, rounds=3, on=lk.Lockstep(), **settings).result()
    with torch.no_grad():
        right = float((run.models[0](inputs[1]).argmax(-1) == digits.test_y).float().mean())
    made = compute(alpha=100.0, clients=4, steps=1, epochs=False)
    assert made.accuracy[method][3] == pytest.approx(right, abs=0.02)


def test_fair_data_need_no_cure() -> None:
    made = compute(alpha=100.0, steps=60)
    assert made.ok and max(abs(curve[-1] - made.accuracy["FedAvg"][-1]) for curve in made.accuracy.values()) < 0.01


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"clients": 1}, {"clients": 99}, {"steps": 0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_it_opens_on_skewed_data_that_fedavg_does_not_bear() -> None:
    view = skew()
    assert not compute(**view.settings).ok
    assert "FedAvg is 2" in view.sentence.value


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = skew()
    for name, value in [("alpha", 1.0), ("clients", 5), ("steps", 60), ("epochs", False), ("seed", 3)]:
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"
    assert "client 4" in view.alt
