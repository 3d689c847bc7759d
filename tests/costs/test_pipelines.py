"""Pipelines' tables have the published bubbles and open microbatches, and tables that cannot run are refused."""

from __future__ import annotations

from itertools import product

import pytest

from labkit.costs.pipelines import Op, PipelineTable, bubble
from labkit.errors import SettingError

SIZES = list(product(range(1, 7), (1, 2, 4, 6, 8, 13)))


@pytest.mark.parametrize(("p", "m"), SIZES)
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_the_bubble_is_gpipes_formula(schedule: str, p: int, m: int) -> None:
    """arXiv:1811.06965; p = m = 4 gives 42.9 %."""
    table = PipelineTable.of(schedule, p, m)
    assert table.bubble == pytest.approx(bubble(p, m)) == pytest.approx((p - 1) / (m + p - 1))
    assert len(table.ticks[0]) == 2 * (m + p - 1)


@pytest.mark.parametrize(("p", "m"), [(p, m) for p, m in SIZES if m >= p])
def test_filled_with_the_gradients_of_weights_it_is_a_third(p: int, m: int) -> None:
    """ZB-H1, arXiv:2401.10241, §2: as many microbatches open as 1F1B's fullest stage has."""
    table = PipelineTable.of("zero-bubble", p, m)
    assert table.bubble == pytest.approx((p - 1) / (3 * m + p - 1))
    assert max(table.open) == max(PipelineTable.of("1f1b", p, m).open)


@pytest.mark.parametrize(("p", "m", "v"), [(2, 4, 2), (4, 8, 2), (4, 4, 3), (3, 6, 4)])
def test_interleaving_divides_the_bubble(p: int, m: int, v: int) -> None:
    """arXiv:2104.04473, §2.2."""
    assert PipelineTable.of("interleaved", p, m, v).bubble == pytest.approx(bubble(p, m, v))


def test_gpipe_keeps_all_microbatches_open_and_1f1b_as_many_as_stages_follow() -> None:
    assert PipelineTable.of("gpipe", 4, 8).open == (8, 8, 8, 8)
    assert PipelineTable.of("1f1b", 4, 8).open == (4, 3, 2, 1)


F, B = (lambda k: Op("F", k)), (lambda k: Op("B", k))


@pytest.mark.parametrize(
    ("ticks", "said"),
    [
        (((F(0), B(0), None), (None, F(0), B(0))), r"Stage 0 does B0 in tick 1, before stage 1 has done B0"),
        (((F(0), None, B(0)), (F(0), B(0), None)), r"Stage 1 does F0 in tick 0, before stage 0 has done F0"),
        (((F(0), F(0), B(0)),), r"Stage 0 does F0 twice, in ticks 0 and 1"),
        (((F(0), F(1), B(0)),), r"Stage 0 never does B1"),
        (((F(0), B(0)), (F(0),)), r"all of them of the same number of ticks"),
        ((), r"a row for each stage"),
        (((),), r"a row for each stage"),
        ((("F0", "B0"),), r"'F0', which is no operation"),
        (((F(-1), B(-1)),), r"which is no operation"),
    ],
)
def test_a_table_that_cannot_be_carried_out_is_refused(ticks: tuple[tuple[Op | None, ...], ...], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        PipelineTable(ticks)


def test_settings_that_make_no_table_are_refused() -> None:
    for settings in (("2f2b", 2, 2), ("1f1b", 0, 2), ("interleaved", 4, 6, 2), ("gpipe", 2, 2, 2)):
        with pytest.raises(SettingError):
            PipelineTable.of(*settings)  # type: ignore[arg-type]
