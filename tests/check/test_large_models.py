"""The puzzles on large models: what solves them passes, and what misses a target is told by how much."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import labkit as lk
from labkit import check
from labkit.algorithms import Pipeline, ZeRO
from labkit.check.moments import stood_still
from labkit.cluster.lab import Lab
from labkit.costs import PRESETS, Machines, Memory, PipelineTable, Transformer, layout, plan
from labkit.errors import CheckFailed
from labkit.history.history import History, Row
from labkit.history.memory import MemoryLedger

ADAM = {"class": "AdamW", "amsgrad": False}
SGD = {"class": "SGD", "momentum": 0}


def summed(y: list[Any]) -> list[Any]:
    return [sum(it[j] for it in y) for j in range(len(y))]


def test_an_adjoint_is_tried_on_real_workers_too(lab: Lab) -> None:
    said = repr(check.adjoint(summed, lab))
    assert re.search(r"cases right, and the sums that 2 workers have by an all-reduce", said)


def test_an_adjoint_that_is_right_in_this_process_alone_is_told(lab: Lab) -> None:
    def mine(y: list[Any]) -> list[Any]:
        import torch.distributed as dist

        return [it + dist.is_initialized() for it in summed(y)]

    with pytest.raises(CheckFailed, match=r"on worker 0 of 2.*let it look at nothing but y"):
        check.adjoint(mine, lab)


# -- puzzles


def test_a_wide_and_shallow_model_of_a_billion_fits_into_24_gb() -> None:
    assert "1,1" in repr(check.on_one_device(Transformer(20, 2048, 32, vocab=50257, seq=1024)))


MODELS: list[tuple[Any, str]] = [
    (PRESETS["GPT-2"], "24 GB"),
    (Transformer(12, 768, 12, vocab=50257, seq=1024), "at least 1,000,000,000"),
    (Transformer(20, 2048, 32, vocab=50257, seq=512), "at least 1024"),
    (Transformer(20, 2048, 32, vocab=512, seq=1024), "50,257"),
    (3, "give a lk.costs.Transformer"),
]


@pytest.mark.parametrize(("model", "said"), MODELS)
def test_a_model_that_misses_the_target_is_told_by_how_much(model: Any, said: str) -> None:
    with pytest.raises(CheckFailed, match=re.escape(said).replace("give", "[Gg]ive")):
        check.on_one_device(model)


def ran(
    algorithm: object,
    peers: int = 4,
    optimizer: Any = ADAM,
    ledger: str = "measured",
    end: float = 2.0,
    parameters: int = 400_000,
    held: float | None = 1.6e6,
    sent: float = 2.25,
    seconds: float = 1.0,
) -> History:
    """What a run on workers leaves: settings, a loss that fell, what was counted and sent."""
    each = 4.0 * parameters * sent
    rows = [Row(k + 1, (4.0 - k * (4.0 - end) / 9,) * peers, None, each * (k + 1), seconds) for k in range(10)]
    settings = {"algorithm": repr(algorithm), "optimizer": optimizer, "model": {"parameters": parameters}}
    own = (Memory(held / 4, held / 4, held / 2),) * peers if held else ()
    memory = MemoryLedger(own, own, ((),) * peers) if held else None
    return History("it", "cluster", peers, ledger=ledger, rows=rows, settings=settings, memory=memory)


def test_zero_3_puts_a_model_of_6_mb_on_four_peers_of_2() -> None:
    assert "400,000 parameters on 4 peers of 1.6 MB" in repr(check.states_on_each(ran(ZeRO(3))))
    assert check.states_on_each(ran(ZeRO(3), optimizer=SGD))


def test_what_workers_hold_is_what_counts(lab: Any) -> None:
    """The puzzle on two peers of 2 MB: stages 1 and 2 of ZeRO have no room there, stage 3 has."""

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))

    def trained(algorithm: Any, **settings: Any) -> History:
        given = {"peers": 2, "rounds": 6, "optimizer": partial(torch.optim.AdamW, lr=0.003), "memory": True}
        return lk.train(model, lk.data.load("digits"), algorithm, on=lab, **given | settings).result()

    puzzle = partial(check.states_on_each, peers=2, most=2e6)
    assert "190,410 parameters on 2 peers of 1.52 MB" in repr(puzzle(trained(ZeRO(3))))
    for algorithm, held in ((ZeRO(1), "2.67 MB"), (ZeRO(2), "2.28 MB"), (lk.algorithms.AllReduce(), "3.05 MB")):
        with pytest.raises(CheckFailed, match=f"{held} of states on a peer; expected at most 2 MB: stage 3 of ZeRO"):
            puzzle(trained(algorithm))
    with pytest.raises(CheckFailed, match="memory=True"):
        puzzle(trained(ZeRO(3), memory=False))


RUNS: list[tuple[Any, str]] = [
    (ran(ZeRO(1), held=4e6), "4 MB of states on a peer; expected at most 2 MB: stage 3"),
    (ran(ZeRO(3), held=2.1e6), "2.1 MB of states on a peer; expected at most 2 MB: an optimiser"),
    (ran(ZeRO(3), held=None), "was not counted: train it with memory=True"),
    (ran(ZeRO(3), sent=3.1), "4.96 MB sent a round; expected at most 4.8 MB"),
    (ran(ZeRO(3), seconds=200.0), "200 s; expected at most 120 s"),
    (ran(ZeRO(3), peers=2), "2 peers; expected 4"),
    (ran(ZeRO(3), ledger="formula"), "not on real workers"),
    (ran(ZeRO(3), end=4.0), "has not learnt"),
    (ran(ZeRO(3), parameters=4_810), "77 kB of states in all; expected more than 2 MB: one peer alone has room"),
    (None, "history of a run"),
]


@pytest.mark.parametrize(("history", "said"), RUNS)
def test_a_run_that_is_too_large_or_not_real_is_told_why(history: Any, said: str) -> None:
    with pytest.raises(CheckFailed, match=re.escape(said)):
        check.states_on_each(history)


def test_1f1b_with_nine_microbatches_solves_the_pipeline_puzzle() -> None:
    table = PipelineTable.of("1f1b", 3, 9)
    assert "bubble 18.2%, at most 3 open" in repr(check.pipeline(table))
    assert "real workers" in repr(check.pipeline(table, ran(Pipeline(9, table), 3)))


@pytest.mark.paired
def test_a_table_is_timed_on_real_workers(lab: Lab) -> None:
    """On two stages: nine microbatches stand still for a tenth of the time, and two for a third."""
    assert "less than 30.0%" in repr(check.pipeline(PipelineTable.of("1f1b", 2, 9), lab=lab, stages=2))
    third = PipelineTable.of("gpipe", 2, 2)
    assert third.bubble == pytest.approx(1 / 3) and 0.25 < stood_still(third, lab) < 0.6


def test_workers_that_stand_still_too_long_are_told(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    monkeypatch.setattr("labkit.check.moments.stood_still", lambda table, lab: 0.31)
    with pytest.raises(CheckFailed, match=r"workers that stood still for 30.0% or more.*other programs"):
        check.pipeline(PipelineTable.of("1f1b", 3, 9), lab=lab)


TABLES: list[tuple[Any, Any, str]] = [
    (PipelineTable.of("gpipe", 3, 9), None, "9 open microbatches"),
    (PipelineTable.of("1f1b", 3, 4), None, "bubble of 33.3%"),
    (PipelineTable.of("1f1b", 2, 9), None, "2 stages; expected 3"),
    (PipelineTable.of("1f1b", 3, 9), ran(Pipeline(9), 3), "followed another table"),
    ("F0 B0", None, "PipelineTable"),
]


@pytest.mark.parametrize(("table", "history", "said"), TABLES)
def test_another_table_is_told_what_it_lacks(table: Any, history: Any, said: str) -> None:
    with pytest.raises(CheckFailed, match=re.escape(said)):
        check.pipeline(table, history)


def test_four_stages_can_do_with_three_open_microbatches_if_weights_wait() -> None:
    """The puzzle's hard form: 1F1B would keep four."""
    with pytest.raises(CheckFailed, match="4 open"):
        check.pipeline(PipelineTable.of("1f1b", 4, 20), stages=4)


LAYOUTS = [
    (layout(check.scale.GPT3, check.scale.FLEET, 1536, data=512, pipeline=2), "at most 72 GB"),
    (layout(check.scale.GPT3, check.scale.FLEET, 1536, data=4, pipeline=32, tensor=8), "or less: of a step"),
    (layout(check.scale.GPT3, Machines(512), 1536, data=8, pipeline=8, tensor=8), "use all"),
]


def test_the_planner_s_best_layout_passes_and_what_does_not_fit_or_is_slow_fails() -> None:
    assert check.layout(plan(check.scale.GPT3, check.scale.FLEET, 1536).best)
    for wrong, said in LAYOUTS:
        with pytest.raises(CheckFailed, match=said):
            check.layout(wrong)


def test_a_layout_is_judged_as_one_of_the_puzzle_s_model_machines_and_batch() -> None:
    fleet, best = check.scale.FLEET, plan(check.scale.GPT3, check.scale.FLEET, 1536).best
    small = Transformer(12, 768, 12, vocab=50257, seq=1024)
    with pytest.raises(CheckFailed, match="at most 72 GB"):
        check.layout(layout(small, fleet, 1536, data=512, pipeline=2))
    with pytest.raises(CheckFailed, match="layers"):
        check.layout(layout(Transformer(128, 768, 12, vocab=50257, seq=1024), fleet, 1536, data=8, pipeline=128))
    with pytest.raises(CheckFailed, match="a step of 512 sequences; expected 1,536"):
        check.layout(layout(check.scale.GPT3, fleet, 512, data=16, pipeline=8, tensor=8))
    assert repr(check.layout(replace(best, computing=0.0, memory=Memory()))) == repr(check.layout(best))
