"""The leakage widget: its gradient is the one that a training sends, and what comes back is the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.errors import LabkitError
from labkit.widgets import leakage
from labkit.widgets.leakage import _gradient, compute, reconstruct
from tests.widgets.traits import changes

# -- compute


def test_its_gradient_is_that_of_torch() -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.random((3, 64)), np.array([1, 7, 1]), rng.normal(size=(10, 64))
    weight, bias = torch.tensor(w, requires_grad=True), torch.zeros(10, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(torch.tensor(x) @ weight.T + bias, torch.tensor(y)).backward()
    expected = np.concatenate([weight.grad.numpy().ravel(), bias.grad.numpy()])  # type: ignore[union-attr]
    assert _gradient(x, y, w) == pytest.approx(expected)


def test_a_message_of_a_real_training_gives_its_picture_away() -> None:
    digits = lk.data.load("digits")
    message = next(lk.step_through(lambda: torch.nn.Linear(64, 10), digits, peers=2, batch_size=1)).sent[0]
    sent = torch.cat([message["weight"].flatten(), message["bias"]]).double().numpy()
    found = reconstruct(sent)[int(message["bias"].argmin())]
    assert np.abs(digits.x.double().numpy() - found).max(axis=1).min() < 1e-4


def test_a_crowd_noise_and_masks_hide_it_and_clipping_does_not() -> None:
    assert compute(batch=1).likeness == pytest.approx([1.0])
    assert compute(batch=1, clip=0.1).likeness == pytest.approx([1.0], abs=1e-6)
    for hidden in (compute(batch=64), compute(noise=3.0), compute(masked=True)):
        assert hidden.ok, hidden.sentence


def test_masks_cost_the_receiver_nothing_and_noise_does() -> None:
    assert compute(masked=True).error == 0.0
    assert compute(noise=1.0).error == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("settings", [{"batch": 0}, {"clip": 0.0}, {"noise": -1.0}, {"keep": 0.0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_it_opens_on_a_picture_that_is_seen() -> None:
    view = leakage()
    assert "the digits never left the house, and are read" in view.sentence.value
    assert "likeness a" in view.alt


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = leakage()
    for name, value in [("batch", 4), ("noise", 0.3), ("keep", 0.2), ("masked", True), ("seed", 5)]:
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"
