"""Training on real workers: it can be steered; what goes wrong ends in one sentence and leaves the cluster usable."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce, Compressed, Independent, LocalSGD
from labkit.cluster.local import local_cluster
from labkit.engines.cluster import Cluster
from labkit.errors import DivergenceError, ExchangeError, GangError, LabClosed, ModelError
from labkit.exchange import Mean, TopK
from tests.engines.experiments import difference, mlp, result

pytestmark = pytest.mark.paired

FOREVER = 1_000_000


def start(lab, algorithm=None, **settings):
    run = lk.train(mlp, lk.data.load("digits"), algorithm, on=lab, **({"peers": 2, "rounds": FOREVER} | settings))
    deadline = time.monotonic() + 30
    while not run.history.rows and not run.done:
        assert time.monotonic() < deadline, "no round came back from the workers"
        time.sleep(0.01)
    return run


@pytest.mark.parametrize("algorithm", [AllReduce(), LocalSGD(every=4), Independent()], ids=repr)
def test_stop_ends_all_ranks_at_the_same_round_and_keeps_the_models(lab, algorithm):
    run = start(lab, algorithm)
    begun = time.monotonic()
    run.stop()
    history = run.result(timeout=10)
    assert time.monotonic() - begun < 3
    assert history.stopped and len(history.models) == 2
    assert [row.round for row in history.rows] == list(range(1, len(history.rows) + 1))


def test_pause_holds_the_workers_and_resume_goes_on(lab):
    run = start(lab)
    run.pause()
    time.sleep(0.5)
    held = len(run.history.rows)
    time.sleep(0.5)
    assert len(run.history.rows) == held
    run.resume()
    deadline = time.monotonic() + 10
    while len(run.history.rows) <= held:
        assert time.monotonic() < deadline, "the run did not go on"
        time.sleep(0.01)
    run.stop()
    run.result(timeout=10)


def test_a_stop_under_a_round_that_does_not_end_closes_its_group(lab):
    class Endless:
        def round(self, peer, batches):
            for batch in batches:
                peer.step(peer.loss(batch))
            yield Mean(peer.params)

    run = lk.train(mlp, lk.data.load("digits"), Endless(), peers=2, rounds=1, on=lab)
    time.sleep(1)
    run.stop()
    history = run.result(timeout=20)
    assert history.stopped and not history.rows and len(history.models) == 2  # as they were before the round
    assert result(lab, AllReduce()).rows


def test_nan_on_one_worker_names_peer_and_remedy_and_the_next_run_works(lab):
    run = lk.train(mlp, lk.data.load("digits"), peers=2, optimizer=partial(torch.optim.SGD, lr=1e30), on=lab)
    with pytest.raises(DivergenceError, match=r"peer \d became (nan|inf).*learning rate"):
        run.result(timeout=30)
    assert result(lab, AllReduce()).final.round == 6


def test_an_error_in_the_users_model_comes_back_with_its_rank_and_cause(lab):
    class Faulty(nn.Linear):
        def forward(self, x):
            if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
                raise ZeroDivisionError("my own mistake")
            return super().forward(x)

    with pytest.raises(GangError, match=r"rank 1 .*ZeroDivisionError: my own mistake") as caught:
        lk.train(lambda: Faulty(64, 10), lk.data.load("digits"), peers=2, on=lab).result(timeout=30)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert result(lab, AllReduce()).rows


def test_peers_with_different_shapes_are_refused_before_they_mix(lab):
    """One process group sums whatever it is given, so what a rank sends is compared first."""

    class Misshapen:
        def round(self, peer, batches):
            peer.step(peer.loss(next(batches)))
            rows = 2 + torch.distributed.get_rank()
            yield Mean(torch.zeros(rows))

    with pytest.raises(ExchangeError, match=r"rank 0 sends Mean of \[2\], and rank 1 Mean of \[3\]"):
        lk.train(mlp, lk.data.load("digits"), Misshapen(), peers=2, rounds=3, on=lab).result(timeout=30)
    assert result(lab, AllReduce()).rows


def test_a_rank_that_yields_less_than_the_others_is_told_so(lab):
    class Uneven:
        def round(self, peer, batches):
            peer.step(peer.loss(next(batches)))
            if torch.distributed.get_rank() == 0:
                peer.params = yield Mean(peer.params)

    with pytest.raises(ExchangeError, match=r"rank 0 sends Mean.*rank 1 nothing more"):
        lk.train(mlp, lk.data.load("digits"), Uneven(), peers=2, rounds=3, on=lab).result(timeout=30)


def test_runs_on_one_cluster_queue_instead_of_deadlocking(lab):
    runs = [lk.train(mlp, lk.data.load("digits"), peers=2, rounds=20, seed=seed, on=lab) for seed in range(3)]
    assert [len(run.result(timeout=60).rows) for run in runs] == [20] * 3


def test_a_run_that_waits_for_its_turn_can_be_stopped(lab):
    first = start(lab)
    waiting = lk.train(mlp, lk.data.load("digits"), peers=2, rounds=20, on=lab)
    time.sleep(0.3)
    waiting.stop()
    assert waiting.result(timeout=10).stopped and not waiting.history.rows
    first.stop()
    first.result(timeout=10)


@pytest.fixture
def own_lab():
    """A cluster that a test may harm; `lk.connect()` would give the one that all tests share."""
    with local_cluster(2, threads=1, memory=4 << 30) as cluster, lk.connect(cluster) as lab:
        yield lab


def test_a_run_that_goes_on_after_a_killed_worker_can_be_stopped_and_the_next_run_works(own_lab):
    run = start(own_lab)
    os.kill(own_lab.workers[1].pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while len(run.history.events) < 2:
        assert time.monotonic() < deadline, "the run did not go on"
        time.sleep(0.01)
    run.stop()
    assert run.result(timeout=10).stopped
    assert result(own_lab, AllReduce()).final.round == 6


def test_training_on_a_closed_lab_is_refused(own_lab):
    own_lab.close()
    with pytest.raises(LabClosed, match=r"lk\.connect"):
        lk.train(mlp, lk.data.load("digits"), on=own_lab)


def test_a_lab_that_is_closed_under_a_run_ends_it_in_one_sentence(own_lab):
    run = start(own_lab)
    own_lab.close()
    with pytest.raises(LabClosed, match=r"lk\.connect"):
        run.result(timeout=15)


def test_fewer_peers_than_workers_use_as_many_workers_as_there_are_peers(lab):
    history = result(lab, AllReduce(), peers=1)
    assert history.peers == 1 and history.bytes == 0


def test_layers_with_running_statistics_train_with_one_peer_per_worker(lab):
    def normalised():
        return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))

    history = result(lab, AllReduce(), normalised, rounds=20)
    assert not torch.equal(history.models[0][1].running_mean, history.models[1][1].running_mean)


@pytest.mark.parametrize("ddp", [lk.DDP(), None])
def test_data_parallel_peers_that_start_from_weights_of_their_own_are_refused(lab, ddp):
    """DDP would give all of them the first one's, and without it gradients of other weights would be averaged."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        models = [mlp(), mlp()]
    with pytest.raises(ModelError, match="they start from different weights: give one model for all"):
        result(Cluster(lab, ddp=ddp), AllReduce(), models)


def test_data_parallel_peers_may_have_parameters_without_a_part_in_the_loss(lab):
    class Spare(nn.Linear):
        """Has a layer that it does not use."""

        def __init__(self):
            super().__init__(64, 10)
            self.spare = nn.Linear(3, 3)

    assert difference(result(lab, AllReduce(), Spare), result(lk.Lockstep(), AllReduce(), Spare)) < 1e-5


def test_each_peer_of_a_wrapped_algorithm_is_tested(lab):
    algorithm = Compressed(LocalSGD(2), TopK(0.5))
    ours = [result(on, algorithm, peers=3).final.accuracies for on in (lab, lk.Lockstep())]
    assert len(ours[0]) == 3 and ours[0] == pytest.approx(ours[1], abs=1e-6)
