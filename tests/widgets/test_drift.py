"""The client-drift widget: its rounds are those of the algorithms, and they end where the formula says."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import labkit as lk
from labkit.errors import LabkitError
from labkit.tasks.split import Partition
from labkit.widgets import drift
from labkit.widgets.client_drift import METHODS, compute
from tests.widgets.traits import changes

# -- compute


@pytest.mark.parametrize("steps", [(1, 4), (3, 3), (7, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_after_many_rounds_it_stands_where_the_formula_says(method: str, steps: tuple[int, int]) -> None:
    made = compute(steps, rate=0.2, rounds=400)
    assert made.paths[method][-1] == pytest.approx(made.ends[method], abs=1e-6)


def test_the_published_figure_of_two_quadratics() -> None:
    made = compute((1, 4), rate=1e-6)  # arXiv:2007.07481
    assert made.ends == pytest.approx({"FedAvg": 4 / 5, "FedNova": 1 / 2, "SCAFFOLD": 1 / 2}, abs=1e-5)


class Number(nn.Module):
    """A model that is one number x, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.x.expand(len(inputs), 1)


def half_square(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).square().mean() / 2


@pytest.mark.parametrize(("method", "steps"), [*((method, 4) for method in METHODS), ("SCAFFOLD", 1)])
def test_its_rounds_are_those_of_the_algorithm(method: str, steps: int) -> None:
    """Client 1 holds `steps` examples that say 0, client 2 four that say 1, and each takes a step on each of them."""
    y = torch.tensor([[0.0]] * steps + [[1.0]] * 4)
    data = lk.data.Tensors("wishes", torch.zeros(len(y), 1), y, torch.zeros(1, 1), torch.zeros(1, 1), 0)
    shards = Partition(range(len(y)), (np.arange(steps), np.arange(steps, len(y))), "one wish each")
    sgd = partial(torch.optim.SGD, lr=0.1)
    algorithm = getattr(lk.algorithms, method)(epochs=1)
    settings = {"loss": half_square, "batch_size": 1, "optimizer": sgd, "shards": shards}
    run = lk.train(Number, data, algorithm, peers=2, rounds=3, on=lk.Lockstep(), **settings).result()
    assert float(run.models[0].x.detach()) == pytest.approx(
        compute((steps, 4), rate=0.1, rounds=3).paths[method][-1], abs=1e-5
    )


@pytest.mark.parametrize("settings", [{"steps": (0, 1)}, {"rate": 0.0}, {"rate": 1.5}, {"rounds": 0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_it_opens_on_a_wrong_end_and_equal_steps_mend_it() -> None:
    view = drift()
    assert "another question" in view.sentence.value
    assert changes(view, "second", 1)
    assert "another question" not in view.sentence.value


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = drift()
    for name, value in [("first", 3), ("second", 9), ("rate", 0.3)]:
        assert changes(view, name, value), name
