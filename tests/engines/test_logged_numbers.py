"""What peers log and the steps that they take stand in the rows, the same on every engine."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

import pytest
import torch

import labkit as lk
from labkit.algorithms import ADPSGD, AllReduce, FedAvg, Independent, LocalSGD, ParameterServer
from labkit.exchange import Mean, Push
from tests.engines.experiments import result

ENGINES = {
    "lockstep": lk.Lockstep(),
    "stacked": lk.Simulator(),
    "blocks": lk.Simulator(block=1),
}


@dataclass(frozen=True)
class Adaptive:
    """Twice as many local steps in each round, and a word of each peer about itself."""

    most: int = 8

    def round(self, peer, batches):
        H = min(self.most, 2 ** (peer.number - 1))
        for _ in range(H):
            peer.step(peer.loss(next(batches)))
        peer.log("H", 0)
        peer.log("H", H)  # the last word is kept
        peer.log("mine", 10 * peer.ids)
        if peer.number == 2:
            peer.log("seldom", torch.tensor(1.5))
        peer.params = yield Mean(peer.params)


def on(name, request):
    return ENGINES[name] if name in ENGINES else request.getfixturevalue("lab")


@pytest.mark.parametrize("engine", [*ENGINES, "cluster"])
def test_rows_have_what_peers_log_and_the_steps_they_take(engine, request):
    history = result(on(engine, request), Adaptive(), peers=3, rounds=5)
    assert [row.logged["H"] for row in history.rows] == [(h,) * 3 for h in (1, 2, 4, 8, 8)]
    assert all(row.logged["mine"] == (0, 10, 20) for row in history.rows)
    assert [row.logged.get("seldom") for row in history.rows] == [None, (1.5,) * 3, None, None, None]
    assert [row.steps for row in history.rows] == [1, 3, 7, 15, 23]


@dataclass(frozen=True)
class Selective(Independent):
    """Only some peers have something to say."""

    def round(self, peer, batches):
        peer.step(peer.loss(next(batches)))
        if int(peer.ids.reshape(-1)[-1]) > 1:
            peer.log("late", peer.ids)
        yield from ()


@pytest.mark.parametrize("engine", ["lockstep", "blocks", "cluster"])
def test_who_says_nothing_has_nan_in_the_row(engine, request):
    row = result(on(engine, request), Selective(), peers=3, rounds=1).rows[0]
    assert [None if isnan(it) else it for it in row.logged["late"]] in ([None, None, 2], [None, 1, 2])


def test_the_picture_has_what_was_logged_and_curves_of_sampled_clients_are_means():
    @dataclass(frozen=True)
    class Clients(FedAvg):
        def round(self, peer, batches):
            if peer.number > 1:
                peer.log("mine", peer.ids)
            yield from super().round(peer, batches)

    history = result(lk.Lockstep(), Clients(every=1, participation=0.5), peers=4, rounds=3)
    expected = [sum(row.peers) / 2 for row in history.rows[1:]]
    assert history.curve("mine") == ([2, 3], [(it,) for it in expected])
    assert "mine" in history.plot().alt and history.plot().png()


STEPS = {
    AllReduce(): 1,
    AllReduce(accumulate=3): 1,
    LocalSGD(every=3): 3,
    FedAvg(every=4, participation=0.5): 2,
    ParameterServer(): 1,
    ADPSGD(): 1,
}
ON_WORKERS = (AllReduce(), FedAvg(every=4, participation=0.5), ParameterServer())


@pytest.mark.parametrize(
    ("engine", "algorithm"),
    [*((engine, it) for engine in ENGINES for it in STEPS), *(("cluster", it) for it in ON_WORKERS)],
    ids=repr,
)
def test_steps_are_those_that_peers_take_on_average(engine, algorithm, request):
    history, steps = result(on(engine, request), algorithm, peers=4, rounds=3), STEPS[algorithm]
    assert [row.steps for row in history.rows] == [steps, 2 * steps, 3 * steps]


def test_passes_of_clients_with_shards_of_different_sizes_are_counted_one_by_one():
    settings = {"peers": 3, "rounds": 2, "shards": lk.data.Dirichlet(0.5)}
    algorithm = FedAvg(epochs=1)
    one, other = (result(on, algorithm, **settings) for on in (lk.Lockstep(), lk.Simulator()))
    assert [row.steps for row in one.rows] == pytest.approx([row.steps for row in other.rows])
    run = lk.train(
        lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), algorithm, batch_size=16, seed=3, **settings
    )
    assert other.rows[0].steps == pytest.approx(run._experiment.steps_per_round)
    run.result(30)


@dataclass(frozen=True)
class LoudServer(ParameterServer):
    """Pushes, and says which gradient was large."""

    def round(self, peer, batches):
        gradients = peer.gradients(peer.loss(next(batches)))
        peer.log("number", peer.number)
        peer.params = yield Push(gradients)


@pytest.mark.parametrize("engine", ["lockstep", "stacked", "cluster"])
def test_asynchronous_peers_log_too(engine, request):
    history = result(on(engine, request), LoudServer(lk.BSP()), peers=2, rounds=4)
    assert [row.logged for row in history.rows] == [{"number": (k, k)} for k in (1, 2, 3, 4)]


def test_rounds_that_are_done_again_replace_what_was_logged(lab, tmp_path):
    on = lk.Cluster(lab, checkpoint_every=2, checkpoint_to=tmp_path)
    whole = result(on, Adaptive(), rounds=4)
    again = result(lk.Cluster(lab, checkpoint_to=tmp_path, resume=True), Adaptive(), rounds=6)
    assert whole.rows[-1].steps == 15 and again.rows[-1].steps == 31 and again.rows[-1].logged["H"] == (8, 8)
