"""A run that fails under way keeps its rows, and the models of its last whole round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import labkit as lk
from labkit.engines.last_round import LastRound
from labkit.errors import DivergenceError

ON: dict[str, Any] = {"simulator": lk.Simulator(), "lockstep": lk.Lockstep()}
WHOLE = 6  # rounds before the one that fails
ALGORITHMS = [
    lk.algorithms.AllReduce(),
    lk.algorithms.LocalSGD(every=2),
    lk.algorithms.FedAvg(every=2, participation=0.5),
    lk.algorithms.Gossip(),
]


def failing(algorithm: Any, how: str) -> Any:
    """The same algorithm, whose round after WHOLE whole ones fails when all its work is done."""

    def round(self: Any, peer: Any, batches: Any) -> Iterator[Any]:
        fails = peer.number == WHOLE + 1
        if fails and how == "diverges":
            peer.params = {name: p * float("nan") for name, p in peer.params.items()}
        yield from type(algorithm).round(self, peer, batches)
        if fails:
            raise ZeroDivisionError("my own mistake")

    return type("Failing", (type(algorithm),), {"round": round})(**vars(algorithm))


def model() -> nn.Module:
    return nn.Linear(64, 10)


def train(on: Any, algorithm: Any, rounds: int = 12) -> Any:
    return lk.train(model, lk.data.load("digits"), algorithm, on=on, peers=4, rounds=rounds, seed=3, batch_size=8)


def weights(history: Any) -> list[Tensor]:
    return [tensor for model in history.models for tensor in model.state_dict().values()]


@pytest.mark.parametrize("how", ["raises", "diverges"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda it: type(it).__name__)
@pytest.mark.parametrize("on", ON)
def test_the_rows_and_models_before_a_failure_are_there(on: str, algorithm: Any, how: str) -> None:
    whole = train(ON[on], algorithm, WHOLE).result(timeout=60)
    run = train(ON[on], failing(algorithm, how))
    with pytest.raises(ZeroDivisionError if how == "raises" else (DivergenceError, ZeroDivisionError)):
        run.result(timeout=60)
    assert run.state == "failed"
    assert [row.losses for row in run.history.rows] == [row.losses for row in whole.rows]
    assert len(run.history.models) == len(whole.models)
    assert all(map(torch.equal, weights(run.history), weights(whole)))


def test_asynchronous_peers_leave_what_they_have_reached() -> None:
    class Failing(lk.algorithms.ParameterServer):
        def round(self, peer: Any, batches: Any) -> Iterator[Any]:
            if peer.number == WHOLE:
                raise ZeroDivisionError("my own mistake")
            yield from super().round(peer, batches)

    run = train(lk.Simulator(), Failing())
    with pytest.raises(ZeroDivisionError):
        run.result(timeout=60)
    assert len(run.history.rows) >= WHOLE - 2 and all(torch.isfinite(it).all() for it in weights(run.history))


def test_a_walk_that_fails_has_the_models_too() -> None:
    settings: dict[str, Any] = {"peers": 2, "rounds": 12, "seed": 3}
    walk = lk.step_through(model, lk.data.load("digits"), failing(lk.algorithms.AllReduce(), "raises"), **settings)
    with pytest.raises(ZeroDivisionError):
        list(walk)
    assert len(walk.history.rows) == WHOLE and len(walk.history.models) == 2


def test_large_models_are_copied_for_a_small_part_of_the_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 2.0, 20.0, 21.0, 25.0])
    monkeypatch.setattr("labkit.engines.last_round.perf_counter", lambda: next(moments))
    monkeypatch.setattr("labkit.engines.last_round._SMALL", 8)
    last, tensor = LastRound(), torch.zeros(100)
    for value in (1.0, 2.0, 3.0, 4.0):
        last.keep([tensor.fill_(value)])  # which takes a second, so that the next one is due at 21
    last.restore([tensor])
    assert tensor[0] == 4.0
