"""A run that fails under way keeps its rows, and the models of its last whole round."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import labkit as lk
from labkit.engines.last_round import LastRound
from labkit.errors import DivergenceError, WorkerLost
from tests.engines.mortals import mortal

ON: dict[str, Any] = {"simulator": lk.Simulator(), "lockstep": lk.Lockstep()}
WHOLE = 6  # rounds before the one that fails
ALGORITHMS = [
    lk.algorithms.AllReduce(),
    lk.algorithms.LocalSGD(every=2),
    lk.algorithms.FedAvg(every=2, participation=0.5),
    lk.algorithms.Gossip(),
]


def failing(algorithm: Any, how: str, who: tuple[int, ...] = (0, 1, 2, 3)) -> Any:
    """The same algorithm; the round after WHOLE whole ones fails, for `who` holds one of these, with its work done."""

    def round(self: Any, peer: Any, batches: Any) -> Iterator[Any]:
        fails = peer.number == WHOLE + 1 and bool({*peer.members} & {*who})
        if fails and how == "diverges":
            peer.params = {name: p * float("nan") for name, p in peer.params.items()}
        yield from type(algorithm).round(self, peer, batches)
        if fails and how == "dies":
            os._exit(1)
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
    whole = train(ON[on], algorithm, WHOLE).result(timeout=120)
    run = train(ON[on], failing(algorithm, how))
    with pytest.raises(ZeroDivisionError if how == "raises" else (DivergenceError, ZeroDivisionError)):
        run.result(timeout=120)
    assert run.state == "failed"
    assert [row.losses for row in run.history.rows] == [row.losses for row in whole.rows]
    assert len(run.history.models) == len(whole.models)
    assert all(map(torch.equal, weights(run.history), weights(whole)))


def near(history: Any, other: Any, peers: Any = slice(None)) -> bool:
    """Whether these peers' models are the same up to rounding."""
    pairs = zip(history.models, other.models[peers], strict=True)
    return all(
        torch.allclose(p, q, atol=1e-5) for m, n in pairs for p, q in zip(m.parameters(), n.parameters(), strict=True)
    )


@pytest.mark.paired
@pytest.mark.parametrize("how", ["raises", "diverges"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda it: type(it).__name__)
def test_workers_too_leave_their_rows_and_models(lab: Any, algorithm: Any, how: str) -> None:
    """Of two ranks one fails, and the other has finished the round, or waits in it."""
    whole = train(lk.Lockstep(), algorithm, WHOLE).result(timeout=120)
    run = train(lab, failing(algorithm, how, who=(2, 3)))
    with pytest.raises(Exception, match=r"my own mistake|became nan"):
        run.result(timeout=120)
    assert run.state == "failed" and [row.round for row in run.history.rows] == list(range(1, WHOLE + 1))
    assert len(run.history.models) == len(whole.models) and near(run.history, whole)


@pytest.mark.paired
def test_large_models_of_workers_are_of_one_round(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks agree on which rounds they copy."""

    class Counts(lk.algorithms.Independent):
        def round(self, peer: Any, batches: Any) -> Iterator[Any]:
            import labkit.engines.last_round as module

            module._SMALL = 8
            peer.params = {name: torch.full_like(p, float(peer.number)) for name, p in peer.params.items()}
            if peer.number == 60 and 3 in peer.members:
                raise ZeroDivisionError("my own mistake")
            yield lk.exchange.Mean(torch.zeros(1))

    run = train(lab, Counts(), rounds=80)
    with pytest.raises(Exception, match="my own mistake"):
        run.result(timeout=120)
    (value,) = {float(p) for tensor in weights(run.history) for p in tensor.flatten()}
    assert 1 <= value <= 59


@pytest.mark.paired
def test_those_that_live_leave_their_models_where_a_worker_dies() -> None:
    with mortal() as lab:
        run = train(lab, failing(lk.algorithms.ADPSGD(), "dies", who=(2, 3)))
        with pytest.raises(WorkerLost, match="The run has the models of peers 0, 1; those of the others were lost"):
            run.result(timeout=120)
    assert len(run.history.models) == 2 and all(torch.isfinite(it).all() for it in weights(run.history))


@pytest.mark.paired
def test_a_server_s_model_outlives_a_worker_that_dies_again_and_again() -> None:
    algorithm = lk.algorithms.FedAvg(every=2)
    whole = train(lk.Lockstep(), algorithm, WHOLE).result(timeout=120)
    with mortal() as lab:
        run = train(lab, failing(algorithm, "dies", who=(2, 3)))
        with pytest.raises(WorkerLost, match="without a checkpoint between"):
            run.result(timeout=100)
    assert near(run.history, whole)


def test_asynchronous_peers_leave_what_they_have_reached() -> None:
    class Failing(lk.algorithms.ParameterServer):
        def round(self, peer: Any, batches: Any) -> Iterator[Any]:
            if peer.number == WHOLE:
                raise ZeroDivisionError("my own mistake")
            yield from super().round(peer, batches)

    run = train(lk.Simulator(), Failing())
    with pytest.raises(ZeroDivisionError):
        run.result(timeout=120)
    assert len(run.history.rows) >= WHOLE - 2 and all(torch.isfinite(it).all() for it in weights(run.history))


def test_a_walk_that_fails_has_the_models_too() -> None:
    settings: dict[str, Any] = {"peers": 2, "rounds": 12, "seed": 3}
    walk = lk.step_through(model, lk.data.load("digits"), failing(lk.algorithms.AllReduce(), "raises"), **settings)
    with pytest.raises(ZeroDivisionError):
        list(walk)
    assert len(walk.history.rows) == WHOLE and len(walk.history.models) == 2


def test_large_models_are_copied_for_a_small_part_of_the_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 2.0, 3.0, 23.0, 24.0])
    monkeypatch.setattr("labkit.engines.last_round.perf_counter", lambda: next(moments))
    monkeypatch.setattr("labkit.engines.last_round._SMALL", 8)
    last, tensor = LastRound(), torch.zeros(100)
    for number in range(11):  # a copy takes a second, and a round with one two
        last.keep(number, [tensor.fill_(number)])
    assert last.rounds == [1]  # the next one is due 20 seconds later, by the pace of the first round
    last.keep(11, [tensor.fill_(11)])
    last.restore(11, [tensor.fill_(-1)])
    assert tensor[0] == 11


def test_two_rounds_are_kept_where_others_may_be_one_ahead() -> None:
    last, tensor = LastRound(agree=float), torch.zeros(100)
    for number in range(5):
        last.keep(number, [tensor.fill_(number)])
    assert last.rounds == [3, 4]
    for number in last.rounds:
        last.restore(number, [tensor.fill_(-1)])
        assert tensor[0] == number
