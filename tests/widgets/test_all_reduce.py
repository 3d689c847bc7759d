"""The all-reduce stepper: its steps are those that ranks really take, and its bytes those of the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from labkit.errors import LabkitError
from labkit.exchange.collectives import FORMS
from labkit.widgets import all_reduce
from labkit.widgets.all_reduce import compute
from tests.widgets.traits import changes

# -- compute


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_in_the_end_every_sum_is_whole_and_the_links_have_carried_what_the_formula_says(form: str, ranks: int) -> None:
    made = compute(form, ranks, step=99, nbytes=4.0 * ranks)
    assert (made.held == ranks).all()
    expected = np.zeros((ranks, ranks))
    for (source, target), numbers in FORMS[form].traffic(ranks, ranks).items():
        expected[source, target] = 4 * numbers
    assert made.carried == pytest.approx(expected)


@pytest.mark.parametrize("ranks", [2, 4, 7])
def test_a_ring_sends_the_least_from_each_and_the_root_of_the_naive_form_most(ranks: int) -> None:
    ring, naive = (compute(form, ranks, step=99, nbytes=1e6) for form in ("ring", "naive"))
    assert ring.ok and ring.out == pytest.approx([ring.least] * ranks)
    assert naive.out[0] == pytest.approx((ranks - 1) * 1e6)
    assert naive.ok == (ranks == 2)


def test_at_first_each_has_its_own_numbers_and_a_step_adds_to_them() -> None:
    assert (compute("ring", 4, step=0).held == 1).all()
    first = compute("ring", 4, step=1)
    assert first.held.sum() == 16 + 4 and first.fresh.sum() == 4 == len(first.sent)


@pytest.mark.parametrize("settings", [{"form": "star"}, {"ranks": 0}, {"ranks": 99}, {"step": -1}, {"nbytes": 0.0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_it_opens_on_a_form_that_sends_too_much() -> None:
    assert "2 times what a ring needs" in all_reduce().sentence.value


def test_sliders_change_the_picture_and_the_numbers_in_the_formula() -> None:
    view = all_reduce()
    for name, value in [("form", "ring"), ("ranks", 6), ("nbytes", 4.0**3)]:
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"


def test_the_button_goes_on_to_the_last_step_and_no_further() -> None:
    view = all_reduce("tree", ranks=2)
    assert view.controls["step"].max == 2
    view.next.click()
    assert view.controls["step"].value == 2 and view.next.disabled
    view.next.click()
    assert "Step 2 of 2" in view.sentence.value and "2 of 2 ranks hold the whole sum" in view.sentence.value
