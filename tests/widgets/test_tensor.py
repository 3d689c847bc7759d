"""The tensor widget: what each cut computes is computed really, and what it sends is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from labkit.errors import LabkitError
from labkit.exchange import Sum
from labkit.text import BAD
from labkit.widgets import tensor
from labkit.widgets.slicing import CUTS, compute
from tests.widgets.traits import changes

# -- compute


@pytest.mark.parametrize("peers", [1, 2, 3, 8])
@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_is_the_whole_network_if_sums_come_where_they_are_needed(cut: str, peers: int) -> None:
    assert compute(cut, summed=True, peers=peers).error < 1e-12


def test_without_a_sum_before_the_bend_it_is_another_network() -> None:
    made = compute("rows, then columns", summed=False)
    assert made.error > 0.1 and not made.ok and "Wrong" in made.sentence
    assert compute("rows, then columns", summed=False, peers=1).error < 1e-12  # one peer's part is the sum


def test_only_columns_then_rows_needs_one_message() -> None:
    found = {cut: compute(cut, summed=True) for cut in CUTS}
    assert [len(made.messages) for made in found.values()] == [1, 2, 2]
    assert [made.ok for made in found.values()] == [True, False, False]


def test_its_bytes_are_those_of_the_messages_formula() -> None:
    made = compute("columns, then rows", peers=4, model=(3, 64), tokens=10)
    assert made.bytes == 3 * Sum(torch.empty(10, 64, dtype=torch.half)).bytes(4)


@pytest.mark.parametrize("settings", [{"cut": "diagonals"}, {"peers": 0}, {"tokens": 0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_it_opens_on_a_wrong_result_and_two_controls_mend_it() -> None:
    view = tensor()
    assert BAD in view.sentence.value
    view.controls["summed"].value = True
    assert "2 messages" in view.sentence.value
    view.controls["cut"].value = "columns, then rows"
    assert "inherit" in view.sentence.value and view.controls["summed"].disabled


def test_controls_change_the_picture_and_the_formula() -> None:
    view = tensor()
    for name, value in [("cut", "columns, then rows"), ("peers", 6)]:
        assert changes(view, name, value), name
    for name, value in [("model", (96, 12288)), ("tokens", 64)]:
        before = view.formula.value
        view.controls[name].value = value
        assert view.formula.value != before, name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"
