"""The speed-up widget: its laws are the laws, and its exchange is that of a simulated training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import labkit as lk
from labkit.costs.speedup import amdahl, gustafson
from labkit.errors import LabkitError
from labkit.widgets import speedup
from labkit.widgets.scaling import OFFICE, WORKERS, compute
from tests.widgets.traits import changes

# -- compute


@pytest.mark.parametrize("p", [0.0, 0.8, 0.95, 1.0])
def test_without_an_exchange_it_is_amdahls_law(p: float) -> None:
    made = compute(p=p, workers=64, message=0.0)
    assert made.speedup == pytest.approx(amdahl(p, 64))
    assert made.real == pytest.approx([amdahl(p, n) for n in WORKERS])
    assert made.gustafson == pytest.approx([gustafson(p, n) for n in WORKERS])


@pytest.mark.parametrize("workers", [2, 8, 32])
def test_with_an_exchange_it_is_what_a_simulated_training_gains(workers: int) -> None:
    digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)

    def seconds(peers: int) -> float:
        clock = lk.Simulator(network=OFFICE, step_seconds=0.01 / peers)
        return lk.train(model, digits, peers=peers, rounds=2, batch_size=8, on=clock).result().seconds / 2

    made = compute(p=1.0, workers=workers, step=0.01, message=650 * 4, link=OFFICE)
    assert made.speedup == pytest.approx(seconds(1) / seconds(workers))


def test_beyond_the_best_number_of_workers_it_is_an_alarm() -> None:
    made = compute()  # what the widget opens on
    assert not made.ok and made.best < made.workers
    assert compute(workers=made.best).ok
    assert f"{made.best} workers would be faster" in made.sentence


def test_who_is_no_slower_than_the_fastest_is_no_alarm() -> None:
    made = compute(p=0.0, workers=64, message=0.0)
    assert made.ok and made.sentence.endswith("The most is 1 times, with 1.")
    assert "1 worker would be faster" in compute(p=0.0, workers=64).sentence
    assert compute(workers=1).sentence.startswith("1 worker is 1 times")


@pytest.mark.parametrize("settings", [{"p": 1.2}, {"workers": 0}, {"step": 0.0}, {"message": -1.0},
                                      {"measured": {0: 1.0}}])  # fmt: skip
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = speedup()
    for name, value in [("p", 0.5), ("workers", 8), ("step", 10.0), ("message", 1.02e8)]:
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"


def test_measured_points_are_drawn() -> None:
    assert speedup(measured={1: 1.0, 2: 1.7}).still() != speedup().still()
