"""The planner's step times are near measured ones, its layouts fit, and it says when nothing does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labkit.costs.link import Link
from labkit.costs.planner import Machines, layout, plan
from labkit.costs.transformer import PRESETS, Transformer
from labkit.errors import SettingError

MEGATRON = [  # arXiv:2104.04473, table 1: heads, hidden, layers, tensor, pipeline, GPUs, batch, TFLOP/s a GPU
    (24, 2304, 24, 1, 1, 32, 512, 137),
    (32, 3072, 30, 2, 1, 64, 512, 138),
    (32, 4096, 36, 4, 1, 128, 512, 142),
    (48, 6144, 40, 8, 1, 256, 1024, 135),
    (64, 8192, 48, 8, 2, 512, 1536, 138),
    (80, 10240, 60, 8, 4, 1024, 1792, 140),
]


@pytest.mark.parametrize(("heads", "hidden", "layers", "tensor", "pipeline", "count", "batch", "measured"), MEGATRON)
def test_step_times_are_near_those_of_megatron(
    heads: int, hidden: int, layers: int, tensor: int, pipeline: int, count: int, batch: int, measured: float
) -> None:
    """One fitted efficiency for all rows; the paper does not give microbatches, so they are of one sequence."""
    model = Transformer(layers, hidden, heads, vocab=51200, seq=2048)
    data = count // tensor // pipeline
    step = layout(model, Machines(count), batch, data=data, tensor=tensor, pipeline=pipeline, zero=0)
    achieved = model.flops(batch * 2048, recompute="full") / step.seconds / count
    assert achieved / 1e12 == pytest.approx(measured, rel=0.16)


def test_layouts_fit_and_the_first_is_the_fastest() -> None:
    found = plan(PRESETS["GPT-3"], Machines(1024), batch=1536)
    assert all(it.memory.total <= 0.9 * 80e9 and it.data * it.pipeline * it.tensor == 1024 for it in found)
    assert [it.seconds for it in found] == sorted(it.seconds for it in found)
    assert found.best in found.close and found.best in found.frontier
    assert all(it.tensor <= 8 and it.data * it.microbatch * it.microbatches == 1536 for it in found)
    assert "within 5 % of the fastest" in repr(found)
    slowest_first = [it.seconds for it in found.frontier]
    assert slowest_first == sorted(slowest_first, reverse=True)


def test_a_slower_network_moves_the_choice_away_from_data_parallelism() -> None:
    machines, model = Machines(64), Transformer(32, 4096, 32, vocab=50257, seq=2048)
    near = plan(model, machines, batch=1024).best
    far = plan(model, replace(machines, between=Link(1e-5, 1e8)), batch=1024).best
    assert far.data < near.data


def test_where_nothing_fits_the_nearest_is_named() -> None:
    with pytest.raises(SettingError, match=r"Nothing fits into 7.2 GB a device; the least is .* take more devices"):
        plan(PRESETS["GPT-3"], Machines(8, memory=8e9), batch=8)
    with pytest.raises(SettingError, match="give a batch or a number of devices with more divisors"):
        plan(PRESETS["GPT-2"], Machines(7), batch=3)


@pytest.mark.parametrize("settings", [{"data": 3}, {"data": 4, "microbatch": 3}, {"data": 4, "zero": 9}, {"tensor": 4}])
def test_what_cannot_be_split_so_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(SettingError):
        layout(PRESETS["GPT-2"], Machines(4), batch=8, **settings)  # type: ignore[arg-type]


def test_a_number_of_machines_does_not_say_what_they_are() -> None:
    with pytest.raises(SettingError, match=r"give lk.costs.Machines\(8\)"):
        plan(Transformer(12, 768, 12, 1000, 128), 8, batch=3)  # type: ignore[arg-type]


def test_a_models_own_shape_will_do_and_other_models_are_refused() -> None:
    from labkit.models import GPT

    gpt = GPT(2, 16, 4, vocab=11, seq=8)
    assert plan(gpt, Machines(2), batch=4).best == plan(gpt.shape, Machines(2), batch=4).best  # type: ignore[arg-type]
    for model, batch in ((object(), 4), (gpt.shape, 2.0), (gpt.shape, 0)):
        with pytest.raises(SettingError):
            plan(model, Machines(2), batch=batch)  # type: ignore[arg-type]
