"""Peers that meet at no barrier, on real workers: they learn, obey, and their failures end in one sentence."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import ADPSGD, FedBuff, ParameterServer
from labkit.cluster.local import local_cluster
from labkit.engines.asynchronous.pair_rank import PairRank
from labkit.engines.cluster import Cluster
from labkit.errors import DivergenceError, ExchangeError, GangError, WorkerLost
from labkit.exchange import Push
from tests.engines.experiments import MOMENTUM, SGD, difference, mlp, parameters, result
from tests.engines.made_for_asynchrony import FOREVER, SERVED, STILL, UNIT, FromApart, Number, Wrong

pytestmark = pytest.mark.paired

TOLERANCE = 1e-5


@pytest.mark.parametrize("peers", [2, 5])
@pytest.mark.parametrize(
    "algorithm",
    [ParameterServer(lk.BSP()), ParameterServer(lk.SSP(0), staleness_aware=True), FedBuff(3, 2, policy=lk.BSP())],
    ids=repr,
)
@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM], ids=["sgd", "momentum"])
def test_under_bsp_the_cluster_agrees_with_lockstep(lab, algorithm, peers, optimizer):
    runs = [result(on, algorithm, peers=peers, optimizer=optimizer) for on in (lab, lk.Lockstep())]
    assert difference(*runs) < TOLERANCE
    assert runs[0].final.accuracies == pytest.approx(runs[1].final.accuracies, abs=0.006)
    assert (runs[0].staleness == 0).all()


@pytest.mark.parametrize("algorithm", [ParameterServer(), FedBuff(2, 3), ADPSGD()], ids=repr)
def test_one_peer_on_one_worker_is_what_it_is_in_lockstep(lab, algorithm):
    assert difference(*(result(on, algorithm, peers=1) for on in (lab, lk.Lockstep()))) < TOLERANCE


@pytest.mark.parametrize("algorithm", [*SERVED, FedBuff(2, 3), ADPSGD()], ids=repr)
def test_bytes_on_the_wire_are_those_of_the_formula(lab, algorithm):
    measured, formula = (result(on, algorithm, rounds=12) for on in (lab, lk.Simulator()))
    assert (measured.ledger, formula.ledger) == ("measured", "formula")
    assert measured.bytes == formula.bytes


@pytest.mark.parametrize("peers", [2, 5])
@pytest.mark.parametrize("algorithm", [ParameterServer(lk.SSP(2)), ParameterServer(), ADPSGD()], ids=repr)
def test_real_workers_learn_asynchronously(lab, algorithm, peers):
    fast = partial(torch.optim.SGD, lr=0.5)
    history = result(lab, algorithm, peers=peers, rounds=150, optimizer=fast, evaluate_every=50)
    assert history.final.accuracy > 0.88
    assert [row.round for row in history.rows] == list(range(1, 151))
    assert history.staleness.shape == (peers, 150) and history.timeline.kind == "measured"
    if algorithm == ParameterServer(lk.SSP(2)):
        assert history.staleness.max() <= (2 * 2 + 1) * (peers - 1)


@pytest.mark.parametrize("rounds", [1, 40])
def test_on_workers_too_two_peers_are_one_step_apart_and_their_mean_takes_half_of_each_step(lab, rounds):
    """Exact in whatever order they meet, unless two meetings overlap: then they would swap instead of averaging."""
    one, other = parameters(result(lab, ADPSGD(), Number, rounds=rounds, **UNIT)).flatten().tolist()
    assert abs(one - other) == pytest.approx(1.0)
    assert (one + other) / 2 == pytest.approx(-rounds)


@pytest.mark.parametrize("name", ["ring", "complete"])
def test_on_workers_too_averaging_alone_keeps_the_mean_and_brings_the_models_together(lab, name):
    runs = [result(on, FromApart(name), peers=5, rounds=rounds, optimizer=STILL) for on, rounds in
            ((lk.Simulator(), 1), (lab, 60))]  # fmt: skip
    begun, ended = map(parameters, runs)
    assert (begun.mean(0) - ended.mean(0)).abs().max() < 1e-6
    assert ended.std(0).max() < 1e-4 < 1e-2 < begun.std(0).max()


def test_all_ranks_count_their_seconds_from_one_moment(lab):
    """Here they share a clock, so that how far they are apart can be seen."""

    def began():
        rank = PairRank(None, (range(1), range(1, 2)), 1.0, torch.device("cpu"))
        rank.start()
        return rank.began

    one, other = lab.launch(began, ranks=2).result(timeout=30)
    assert abs(one - other) < 1e-3


class Sluggish(nn.Linear):
    """A model that takes its time on rank 1."""

    def forward(self, x):
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1 and self.training:
            threading.Event().wait(0.05)
        return super().forward(x)


@pytest.mark.parametrize(("policy", "share"), [(lk.ASP(), (0.0, 0.5)), (lk.BSP(), (0.9, 1.0))], ids=["ASP", "BSP"])
def test_a_slow_worker_holds_others_up_under_bsp_and_not_under_asp(lab, policy, share):
    history = result(lab, ParameterServer(policy), lambda: Sluggish(64, 10), rounds=20, evaluate_every=20)
    ends = history.timeline.finish[:, -1]
    assert share[0] <= ends[0] / ends[1] <= share[1], ends
    assert history.timeline.policy == policy


def test_a_slow_worker_is_waited_for_only_as_far_as_the_bound_says(lab):
    history = result(lab, ParameterServer(lk.SSP(3)), lambda: Sluggish(64, 10), rounds=20, evaluate_every=20)
    assert np.median(history.timeline.staleness[0]) == history.timeline.staleness.max() == 3
    assert history.staleness.max() <= 7


def test_in_pairs_a_slow_worker_holds_nobody_up(lab):
    history = result(lab, ADPSGD(), lambda: Sluggish(64, 10), rounds=20, evaluate_every=20)
    ends = history.timeline.finish[:, -1]
    assert ends[0] / ends[1] < 0.5, ends
    assert history.staleness[1].max() > 1  # others averaged with it again and again meanwhile


# -- steering and failures on real workers


def start(lab, algorithm, model=mlp, **settings):
    settings = {"peers": 2, "rounds": FOREVER, "optimizer": SGD} | settings
    run = lk.train(model, lk.data.load("digits"), algorithm, on=lab, **settings)
    deadline = time.monotonic() + 30
    while not run.history.rows and not run.done:
        assert time.monotonic() < deadline, "no round came back from the workers"
        time.sleep(0.01)
    return run


def services(lab):
    """The service threads that are left on the workers."""
    names = lab.client.run(lambda: [it.name for it in threading.enumerate() if it.name == "labkit-service"])
    return [name for each in names.values() for name in each]


EVERYONE = pytest.mark.parametrize("algorithm", [*SERVED, ADPSGD()], ids=repr)


@EVERYONE
def test_stop_ends_all_ranks_and_keeps_the_models(lab, algorithm):
    run = start(lab, algorithm)
    begun = time.monotonic()
    run.stop()
    history = run.result(timeout=10)
    assert time.monotonic() - begun < 3
    assert history.stopped and len(history.models) == 2
    assert [row.round for row in history.rows] == list(range(1, len(history.rows) + 1))
    assert services(lab) == []


@EVERYONE
def test_pause_holds_the_workers_and_resume_goes_on(lab, algorithm):
    run = start(lab, algorithm)
    run.pause()
    time.sleep(0.4)
    held = len(run.history.rows)
    time.sleep(0.3)
    assert len(run.history.rows) == held
    run.resume()
    deadline = time.monotonic() + 10
    while len(run.history.rows) <= held:
        assert time.monotonic() < deadline, "the run did not go on"
        time.sleep(0.01)
    run.stop()
    run.result(timeout=10)


def test_a_pause_does_not_count_as_waiting(lab):
    run = start(Cluster(lab, timeout=1.0), ParameterServer(lk.BSP()))
    run.pause()
    time.sleep(1.6)
    run.resume()
    rows = len(run.history.rows)
    deadline = time.monotonic() + 10
    while len(run.history.rows) <= rows and not run.done:
        assert time.monotonic() < deadline, "the run did not go on"
        time.sleep(0.01)
    run.stop()
    assert run.result(timeout=10).stopped


class Stuck(nn.Linear):
    """A model that hangs on rank 1, until its rank is ended."""

    def forward(self, x):
        while torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            time.sleep(0.01)
        return super().forward(x)


@pytest.mark.parametrize("algorithm", [ParameterServer(lk.BSP()), ParameterServer()], ids=repr)
def test_a_rank_that_is_never_heard_of_ends_the_run_in_one_sentence(lab, algorithm):
    run = lk.train(
        lambda: Stuck(64, 10), lk.data.load("digits"), algorithm, peers=2, rounds=2, on=Cluster(lab, timeout=2)
    )
    with pytest.raises(ExchangeError, match="heard nothing for 2 s, because another one's round takes longer"):
        run.result(timeout=30)
    assert services(lab) == []


@EVERYONE
def test_nan_on_one_worker_names_the_peer_and_the_next_run_works(lab, algorithm):
    run = start(lab, algorithm, optimizer=partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(DivergenceError, match=r"peer \d became (nan|inf).*learning rate"):
        run.result(timeout=30)
    assert services(lab) == []
    assert result(lab, algorithm).final.round == 6


@pytest.mark.parametrize("algorithm", [ParameterServer(), ADPSGD()], ids=repr)
def test_an_error_in_the_users_model_comes_back_with_its_rank(lab, algorithm):
    class Faulty(nn.Linear):
        def forward(self, x):
            if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
                raise ZeroDivisionError("my own mistake")
            return super().forward(x)

    with pytest.raises(GangError, match=r"rank 1 .*ZeroDivisionError: my own mistake") as caught:
        result(lab, algorithm, lambda: Faulty(64, 10))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert services(lab) == []


@pytest.mark.parametrize("algorithm", [Wrong("nothing"), Wrong("a mean"), Wrong("twice")], ids=repr)
def test_rounds_that_are_no_asynchronous_ones_are_refused_on_workers_too(lab, algorithm):
    with pytest.raises(ExchangeError, match="Wrong is asynchronous, and its round yields"):
        result(lab, algorithm)


def test_a_server_that_cannot_take_a_push_says_why(lab):
    @dataclass(frozen=True)
    class Half:
        asynchronous: ClassVar[bool] = True

        def round(self, peer, batches):
            gradients = peer.gradients(peer.loss(next(batches)))
            peer.params = yield Push(dict(list(gradients.items())[:1]))

        server = Wrong.server

    with pytest.raises(ExchangeError, match=r"where a model of .* is kept: give all peers the same"):
        result(lab, Half())
    assert services(lab) == []


def test_models_differ_between_peers_that_average_and_not_behind_a_server(lab):
    paired, served = (parameters(result(lab, it)) for it in (ADPSGD(), ParameterServer()))
    assert (paired[0] - paired[1]).abs().max() > 1e-5 and (served[0] - served[1]).abs().max() == 0


@pytest.fixture(scope="module")
def mortal():
    """Three workers that a test may harm; `lk.connect()` would give those that all tests share."""
    with local_cluster(3, threads=1, memory=4 << 30) as cluster, lk.connect(cluster) as lab:
        yield lab


def test_peers_on_three_workers_that_all_meet_all_do_not_wait_in_a_circle(mortal):
    history = result(mortal, ADPSGD("complete"), Number, peers=7, rounds=150, evaluate_every=150, **UNIT)
    assert parameters(history).mean().item() == pytest.approx(-150)
    assert history.staleness.shape == (7, 150)


@pytest.mark.parametrize(
    ("algorithm", "victim"),
    [(ParameterServer(lk.BSP()), 0), (ParameterServer(lk.BSP()), 1), (ParameterServer(), 2), (ADPSGD("complete"), 1)],
    ids=["BSP, the server", "BSP, a peer", "ASP, a peer", "pairs"],
)
def test_a_killed_worker_ends_the_run_within_seconds_and_the_next_run_works(mortal, algorithm, victim):
    mortal.client.wait_for_workers(3, timeout=30)  # the last victim is back
    workers = mortal.workers
    run = start(mortal, algorithm, peers=3)
    os.kill(workers[victim].pid, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(WorkerLost, match=f"rank {victim}"):
        run.result(timeout=30)
    assert time.monotonic() - begun < 5
    assert services(mortal) == []
    mortal.client.wait_for_workers(3, timeout=30)
    assert result(mortal, algorithm, peers=3).final.round == 6
