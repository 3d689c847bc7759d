"""The communication widget: its bytes and seconds are those of real trainings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import labkit as lk
from labkit.errors import LabkitError
from labkit.exchange import TopK
from labkit.widgets import communication
from labkit.widgets.traffic import EVERY, compute
from tests.widgets.traits import changes

ALGORITHMS = {
    "every step": lk.algorithms.AllReduce(),
    "every 4 steps": lk.algorithms.LocalSGD(every=4),
    "top 10.0%": lk.algorithms.Compressed(lk.algorithms.AllReduce(), TopK(0.1)),
    "both": lk.algorithms.Compressed(lk.algorithms.LocalSGD(every=4), TopK(0.1)),
}

# -- compute


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_costs_what_it_costs_in_a_simulated_training(name: str) -> None:
    link, steps = lk.Link(latency=2e-3, bandwidth=1e6), 16
    clock = lk.Simulator(network=link, step_seconds=3e-3)
    algorithm = ALGORITHMS[name]
    rounds = steps // getattr(algorithm, "every", 1)
    digits = lk.data.load("digits")
    settings = {"peers": 4, "rounds": rounds, "on": clock, "evaluate_every": rounds}
    history = lk.train(lambda: torch.nn.Linear(64, 10), digits, algorithm, **settings).result()
    made = compute(every=4, bandwidth=1e6, latency=2e-3, keep=0.1, parameters=650, step=3e-3, workers=4)
    assert steps * made.ways[name].bytes == pytest.approx(history.bytes)
    assert steps * (made.step + made.ways[name].seconds) == pytest.approx(history.seconds)
    assert made.efficiency(name) == pytest.approx(steps * 3e-3 / history.seconds)


def test_local_steps_divide_bytes_and_time_by_their_number() -> None:
    one = compute(every=1).ways["every step"]
    for every in EVERY:
        way = compute(every=every).ways[f"every {every} steps"]
        assert (way.bytes * every, way.seconds * every) == pytest.approx((one.bytes, one.seconds))


def test_an_average_of_a_model_of_any_size_needs_no_memory() -> None:
    way = compute(parameters=7 * 10**9, workers=8, bandwidth=12.5e9, latency=0.0).ways["every step"]
    assert way.bytes == 2 * 7 / 8 * 28e9
    assert way.seconds == pytest.approx(way.bytes / 12.5e9)


def test_compression_pays_less_the_more_there_are() -> None:
    """Codes cannot be added on the way: each peer gets those of all others."""
    few, many = (compute(workers=n, keep=0.1).ways for n in (2, 32))
    assert few["top 10.0%"].bytes < few["every step"].bytes
    assert many["top 10.0%"].bytes > many["every step"].bytes


def test_who_is_alone_only_computes() -> None:
    made = compute(workers=1)
    assert all(made.efficiency(name) == 1.0 for name in made.ways)


@pytest.mark.parametrize(
    "settings", [{"every": 0}, {"workers": 0}, {"bandwidth": 0.0}, {"latency": -1.0}, {"keep": 2.0}]
)
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = communication()
    for name, value in [("every", 32), ("bandwidth", 125e6), ("latency", 1e-2), ("parameters", 10**6), ("step", 0.2),
                        ("workers", 9)]:  # fmt: skip
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"


def test_what_top_k_keeps_is_in_picture_and_sentence() -> None:
    view = communication()
    before = view.still(), view.sentence.value
    view.controls["keep"].value = 0.1
    assert view.still() != before[0] and view.sentence.value != before[1]
