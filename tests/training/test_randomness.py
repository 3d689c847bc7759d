"""A training in the background and the notebook's own random numbers have nothing to do with each other."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import labkit as lk


class Drawing(nn.Module):
    """Draws in its forward pass, in ways that torch's own Dropout does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.layer(inputs + 0.01 * torch.randn_like(inputs))
        return out * (torch.rand(()) > 0.1)


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))


MODELS: dict[str, Any] = {"plain": lambda: nn.Linear(64, 10), "dropout": dropping, "own": Drawing}
ON: dict[str, Any] = {"simulator": lk.Simulator(), "lockstep": lk.Lockstep()}


def numbers() -> tuple[Any, ...]:
    return torch.rand(2).tolist(), np.random.rand(), random.random(), nn.Linear(2, 1).weight.tolist()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    "algorithm", [lk.algorithms.AllReduce(), lk.algorithms.ParameterServer()], ids=["meeting", "asynchronous"]
)
def test_what_a_cell_draws_during_a_run_is_what_it_would_draw_without(model: str, on: str, algorithm: Any) -> None:
    def seeded() -> list[tuple[Any, ...]]:
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        return [(numbers(), time.sleep(0.01))[0] for _ in range(20)]

    alone = seeded()
    run = lk.train(MODELS[model], lk.data.load("digits"), algorithm, peers=2, rounds=100_000, on=ON[on])
    try:
        assert seeded() == alone
        assert not run.done
    finally:
        run.stop()
        run.result(timeout=60)
    assert run.history.rows


@pytest.mark.parametrize("model", ["dropout", "own"])
@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    "algorithm", [lk.algorithms.AllReduce(), lk.algorithms.ParameterServer()], ids=["meeting", "asynchronous"]
)
def test_a_run_is_the_same_whatever_the_notebook_draws_meanwhile(model: str, on: str, algorithm: Any) -> None:
    def losses() -> list[float]:
        run = lk.train(MODELS[model], lk.data.load("digits"), algorithm, peers=3, rounds=30, seed=5, on=ON[on])
        return [row.loss for row in run.result(timeout=60).rows]

    alone, over = losses(), threading.Event()

    def draw() -> None:
        while not over.wait(0.0005):
            torch.randn(3)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        assert losses() == alone
    finally:
        over.set()
        thread.join()
