"""The model scale widget: its figures are those of published models."""

from __future__ import annotations

from typing import Any

import pytest

from labkit.errors import LabkitError
from labkit.widgets import model_scale
from labkit.widgets.model_size import DEVICES, OWN, compute
from tests.widgets.traits import changes

# -- compute


def test_gpt_3_takes_what_its_paper_says() -> None:
    made = compute("GPT-3", tokens=300e9)
    assert made.model.parameters == pytest.approx(174.6e9, rel=1e-3)
    assert made.bill.flops == pytest.approx(3.14e23, rel=2e-3)  # arXiv:2005.14165, table D.1


def test_training_takes_sixteen_bytes_a_parameter_and_activations() -> None:
    made = compute("GPT-2", batch=4)
    states = made.training.total - made.training.activations
    assert states == 16 * made.model.parameters
    assert made.training.activations == made.model.activations(4)
    assert made.needs["read once"].total == 2 * made.model.parameters


def test_what_is_computed_again_is_not_kept() -> None:
    whole, some, least = (compute("GPT-3", recompute=how).training.activations for how in ("none", "selective", "full"))
    assert whole > some > least


def test_it_opens_on_a_model_that_fits_nowhere_and_can_be_mended() -> None:
    assert not compute().ok and not compute().fits
    assert compute(batch=1).fits == ("80 GB",)
    assert compute(OWN, 12, 768, batch=1).fits == tuple(DEVICES)


def test_the_bill_divides_the_operations_by_the_devices() -> None:
    one, many = compute(devices=1).bill, compute(devices=64).bill
    assert one.days == pytest.approx(64 * many.days) and one.cost == pytest.approx(many.cost)


@pytest.mark.parametrize("settings", [{"preset": "GPT-7"}, {"batch": 0}, {"recompute": "half"}, {"devices": 0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = model_scale()
    for name, value in [("preset", "GPT-3"), ("batch", 2), ("preset", OWN), ("layers", 3), ("hidden", 256),
                        ("recompute", "full"), ("seq", 128)]:  # fmt: skip
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"


def test_a_preset_sets_the_sliders_of_the_shape_and_holds_them() -> None:
    view = model_scale("Llama-3 405B")
    assert [view.controls[name].value for name in ("layers", "hidden", "seq")] == [126, 16384, 8192]
    assert view.controls["layers"].disabled
    view.controls["preset"].value = OWN
    assert not view.controls["layers"].disabled
    assert view.controls["layers"].value == 126  # from where it goes on


def test_tokens_and_devices_are_in_the_bill() -> None:
    view = model_scale()
    for name, value in [("tokens", 1e9), ("devices", 1)]:
        before = view.sentence.value
        view.controls[name].value = value
        assert view.sentence.value != before, name
