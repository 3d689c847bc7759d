"""step_through(): the same training as ever, which stops at every message and leaves nothing behind."""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass

import pytest
import torch

import labkit as lk
from labkit.algorithms import AllReduce, Independent, LocalSGD
from labkit.errors import DataError, ExchangeError, SettingError
from labkit.exchange import Barrier, Gather, Mean
from tests.engines.experiments import SGD, difference, mlp, result


@dataclass(frozen=True)
class Twice:
    """Two messages of two kinds in each round, and noise from torch's random state."""

    def round(self, peer, batches):
        inputs, targets = next(batches)
        noise = torch.randn(inputs.shape)
        peer.step(peer.loss((inputs + 0.1 * noise, targets)))
        yield Gather(peer.logits(inputs))
        peer.params = yield Mean(peer.params)


def walk(algorithm, model=mlp, **settings):
    settings = {"peers": 2, "rounds": 3, "batch_size": 16, "seed": 3, "optimizer": SGD} | settings
    return lk.step_through(model, lk.data.load("digits"), algorithm, **settings)


def test_it_stops_at_every_message_of_every_round_in_order():
    with walk(Twice()) as steps:
        seen = [(it.round, it.number, it.name) for it in steps]
    assert seen == [(k, *message) for k in (1, 2, 3) for message in ((1, "Gather"), (2, "Mean"))]
    assert len(steps.history.rows) == 3 and not steps.history.stopped


@pytest.mark.parametrize("algorithm", [AllReduce(), LocalSGD(every=2), Twice()], ids=str)
def test_it_is_the_training_of_the_lockstep_engine_to_the_last_bit(algorithm):
    steps = walk(algorithm)
    for _ in steps:
        torch.rand(3)  # what the notebook draws in between changes nothing
    assert difference(steps.history, result(lk.Lockstep(), algorithm, rounds=3)) == 0


def test_the_notebooks_own_random_numbers_are_untouched():
    torch.manual_seed(7)
    expected = [torch.rand(2) for _ in range(3)]
    torch.manual_seed(7)
    steps, drawn = walk(Twice()), []
    for _ in range(3):
        next(steps)
        drawn.append(torch.rand(2))
    steps.close()
    assert all(torch.equal(one, other) for one, other in zip(drawn, expected, strict=True))


def test_a_barrier_has_what_the_peers_send_and_the_mean_they_receive():
    it = next(walk(LocalSGD(every=2)))
    assert isinstance(it, Barrier) and it.peers == (0, 1)
    mean = (it.sent[0]["0.weight"] + it.sent[1]["0.weight"]) / 2
    assert torch.allclose(it.received[0]["0.weight"], mean) and it.same
    assert it.bytes == 4 * 2410  # 2 (n − 1) / n of 2,410 numbers of four bytes


def test_those_who_take_part_have_their_numbers():
    @dataclass(frozen=True)
    class Some(LocalSGD):
        participation: float = 0.5

        def round(self, peer, batches):
            peer.step(peer.loss(next(batches)))
            peer.shared["params"] = yield Mean(peer.params)

    seen = [it.peers for it in walk(Some(), peers=6, rounds=6, model=lambda: torch.nn.Linear(64, 10))]
    assert all(len(peers) == 3 for peers in seen) and len(set(seen)) > 1
    assert max(map(max, seen)) > 3


def test_who_exchanges_nothing_never_stops():
    steps = walk(Independent())
    assert list(steps) == [] and len(steps.history.rows) == 3


def test_closing_early_leaves_nothing_behind():
    threads = threading.active_count()
    closed = []

    @dataclass(frozen=True)
    class Tidy:
        def round(self, peer, batches):
            try:
                while True:
                    peer.step(peer.loss(next(batches)))
                    peer.params = yield Mean(peer.params)
            finally:
                closed.append(int(peer.ids))

    with walk(Tidy()) as steps:
        next(steps)
        next(steps)
        assert closed == [] and threading.active_count() == threads
    gc.collect()
    assert sorted(closed) == [0, 1]
    assert steps.history.stopped and next(steps, None) is None


def test_what_goes_wrong_keeps_the_traceback_of_the_algorithm():
    @dataclass(frozen=True)
    class Mistaken:
        def round(self, peer, batches):
            yield Mean(peer.params)
            raise KeyError("mine")

    steps = walk(Mistaken())
    next(steps)
    with pytest.raises(KeyError, match="mine") as caught:
        next(steps)
    assert caught.traceback[-1].name == "round"  # no thread in between
    assert next(steps, None) is None


def test_peers_that_yield_different_things_are_told_so():
    @dataclass(frozen=True)
    class Odd:
        def round(self, peer, batches):
            yield Mean(peer.params) if peer.ids == 0 else Gather(peer.params)

    with pytest.raises(ExchangeError, match="different things"):
        next(walk(Odd()))


@pytest.mark.parametrize(
    ("algorithm", "settings", "error", "says"),
    [
        (AllReduce(), {"on": lk.Simulator()}, SettingError, "leave on= away"),
        (AllReduce(), {"rounds": 0}, SettingError, "rounds is 0"),
        (AllReduce(), {"peers": 2000}, DataError, "2000 peers"),
        (lk.algorithms.ParameterServer(), {}, SettingError, "ParameterServer do not meet at barriers"),
    ],
    ids=["engine", "rounds", "peers", "asynchronous"],
)
def test_what_cannot_be_stepped_through_is_refused(algorithm, settings, error, says):
    with pytest.raises(error, match=says) as caught:
        walk(algorithm, **settings)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_it_says_where_it_stands_and_shows_the_last_message():
    steps = walk(Twice())
    assert repr(steps) == "StepThrough: Twice, 2 peers, before the first message"
    assert set(steps._repr_mimebundle_()) == {"text/plain"}
    next(steps), next(steps)
    assert repr(steps) == "StepThrough: Twice, 2 peers, round 1 of 3, message 2"
    data, _ = steps._repr_mimebundle_()
    assert "image/png" in data and data["text/plain"].startswith("Round 1, message 2: Mean of 2 peers")
