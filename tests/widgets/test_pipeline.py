"""The pipeline widget: tables by schedule, and drawn cell by cell or line by line."""

from __future__ import annotations

from typing import Any

import pytest

from labkit.costs import PipelineTable, bubble
from labkit.errors import LabkitError, SettingError
from labkit.text import BAD
from labkit.widgets import pipeline
from labkit.widgets.pipelining import OWN, compute
from tests.widgets.traits import changes

SOLVED = "F0 F1 ·  ·  B0 B1\n·  F0 F1 B0 B1 ·\n"

# -- compute


@pytest.mark.parametrize(("p", "m"), [(4, 4), (2, 8), (3, 5)])
def test_the_bubble_of_gpipe_is_that_of_its_law_and_zero_bubble_s_is_smaller(p: int, m: int) -> None:
    assert compute("gpipe", p, m).sketch.bubble == pytest.approx(bubble(p, m))
    assert compute("1f1b", p, m).sketch.bubble == pytest.approx(bubble(p, m))
    assert compute("zero-bubble", p, m).sketch.bubble < bubble(p, m)


def test_it_opens_on_a_table_that_misses_both_targets_and_1f1b_with_nine_microbatches_meets_them() -> None:
    made = compute()
    assert not made.ok and "stand still for 33.3%" in made.sentence and "keeps 4 microbatches open" in made.sentence
    assert compute("1f1b", 3, 9).ok


def test_a_table_of_ones_own_says_its_first_fault_and_how_many_more() -> None:
    assert compute(OWN, 2, 2, table=SOLVED).faults == ()
    early = compute(OWN, 2, 2, table="F0 F1 ·  ·  B0 B1\nF0 ·  F1 B0 B1 ·")
    assert not early.ok and "Stage 1 does F0 in tick 0, before stage 0 has done F0" in early.sentence
    assert "more like it" in compute(OWN, 2, 2, table="F0\n·").sentence
    assert "microbatch 2 of 3 has not been" in compute(OWN, 2, 3, table=SOLVED).sentence


@pytest.mark.parametrize(
    "settings",
    [{"schedule": "luck"}, {"stages": 0}, {"most": 0}, {"schedule": OWN, "table": "F0 X1"},
     {"schedule": OWN, "stages": 3, "table": SOLVED}, {"schedule": OWN, "table": ""}],
)  # fmt: skip
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LabkitError):
        compute(**settings)


# -- the view


def test_schedule_stages_and_microbatches_change_picture_and_formula() -> None:
    view = pipeline()
    for name, value in [("schedule", "1f1b"), ("stages", 5), ("microbatches", 8), ("schedule", "zero-bubble")]:
        assert changes(view, name, value), name
    assert view.formula.value == f"$${compute(**view.settings).latex}$$"


def press(view: Any, stage: int, tick: int, until: str) -> None:
    """Press a cell, as somebody would, until it shows what is wanted."""
    for _ in range(4):
        if view.cells[stage][tick].description == until:
            return
        view.cells[stage][tick].click()
    assert view.cells[stage][tick].description == until


def test_a_table_is_drawn_by_pressing_its_cells() -> None:
    view = pipeline(stages=2, microbatches=2)
    view.controls["schedule"].value = OWN
    assert view.table == PipelineTable.of("gpipe", 2, 2)  # from which one goes on
    view.clear.click()
    assert all(cell.description == "·" for row in view.cells for cell in row)
    drawn = {(0, 0): "F0", (1, 1): "F0", (0, 1): "F1", (1, 2): "B0", (0, 3): "B0", (1, 3): "F1", (1, 4): "B1"}
    for (stage, tick), op in drawn.items():
        press(view, stage, tick, op)
    assert "Stage 0 never does B1" in view.sentence.value
    with pytest.raises(SettingError, match="never does B1"):
        _ = view.table
    press(view, 0, 5, "B1")
    assert view.table == PipelineTable.of("1f1b", 2, 2) and "Not a schedule" not in view.sentence.value


def test_a_cell_only_offers_what_its_stage_could_do_then() -> None:
    view = pipeline(stages=2, microbatches=2)
    view.controls["schedule"].value = OWN
    view.clear.click()
    view.cells[1][0].click()  # nothing has come yet
    assert view.cells[1][0].description == "·"
    view.cells[0][0].click()
    view.cells[1][1].click()
    assert [view.cells[0][0].description, view.cells[1][1].description] == ["F0", "F0"]
    assert view.cells[0][0].tooltip == "stage 0, tick 0: forward" and view.cells[0][0].style.button_color


def test_a_table_is_drawn_by_writing_its_lines() -> None:
    view = pipeline(stages=2, microbatches=2)
    view.controls["schedule"].value = OWN
    before = view.still()
    view.controls["table"].value = SOLVED
    assert view.still() != before and view.cells[0][4].description == "B0"
    view.controls["table"].value = "F0 ?\n·"
    assert "no operation" in view.sentence.value
    assert view.controls["table"].value == "F0 ?\n·"  # what somebody wrote is not thrown away
    view.controls["table"].value = SOLVED
    view.controls["stages"].value = 3
    assert view.controls["table"].value.splitlines()[:2] == [line.rstrip() for line in SOLVED.splitlines()]
    assert len(view.cells) == 3


def test_cells_are_there_only_while_somebody_draws() -> None:
    view = pipeline()
    assert view._grid.layout.display == "none" and view.controls["table"].disabled
    view.controls["schedule"].value = OWN
    assert view._grid.layout.display == "grid" and not view.controls["table"].disabled


def test_the_targets_raise_and_lift_the_alarm() -> None:
    view = pipeline("1f1b")
    assert BAD in view.sentence.value
    view.controls["idle"].value = 0.4
    assert "Done: a bubble of 33.3%" in view.sentence.value
    view.controls["most"].value = 2
    assert "memory for 2" in view.sentence.value
