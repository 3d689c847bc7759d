"""Peers that meet at no barrier, on virtual time: engines agree, and nobody waits who need not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import labkit as lk
from labkit import tree
from labkit.algorithms import ADPSGD, Compressed, FedBuff, LocalSGD, ParameterServer
from labkit.engines.asynchronous.request_handlers import StalenessGate
from labkit.errors import DivergenceError, ExchangeError, ModelError, SettingError
from labkit.exchange import Push, TopK
from tests.engines.experiments import (
    ADAM,
    MOMENTUM,
    SGD,
    convolution,
    difference,
    every_position,
    language_model,
    mlp,
    result,
    sequences,
)
from tests.engines.made_for_asynchrony import FOREVER, SERVED, Wrong

TOLERANCE = 1e-5
ALGORITHMS = [
    *SERVED,
    ParameterServer(staleness_aware=True),
    FedBuff(3, 4, server_lr=0.7, staleness_scaling=True),
    FedBuff(2, 2, policy=lk.SSP(2)),
    ADPSGD(),
    ADPSGD("complete"),
]
EVEN = {}
UNEVEN = {"speeds": [1.0, 2.0, 0.7, 1.3, 3.0], "step_seconds": 1.0}
FAR = UNEVEN | {"network": lk.Link(latency=0.1, bandwidth=1e5)}


# -- virtual time: lockstep and stacked


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM], ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("clock", [EVEN, UNEVEN, FAR], ids=["even", "uneven", "far"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_lockstep_and_stacked_agree(algorithm, clock, optimizer):
    runs = [result(on(**clock), algorithm, peers=5, optimizer=optimizer) for on in (lk.Lockstep, lk.Simulator)]
    assert difference(*runs) < TOLERANCE
    assert (runs[0].staleness == runs[1].staleness).all()
    assert [row.bytes for row in runs[0].rows] == [row.bytes for row in runs[1].rows]
    if clock:
        assert [row.seconds for row in runs[0].rows] == [row.seconds for row in runs[1].rows]
        np.testing.assert_array_equal(runs[0].timeline.start, runs[1].timeline.start)


@pytest.mark.parametrize("algorithm", [ParameterServer(), ADPSGD()], ids=repr)
def test_engines_agree_on_models_that_predict_at_every_position_of_a_sequence(algorithm):
    settings = {"peers": 5, "rounds": 4, "batch_size": 16, "optimizer": ADAM, "loss": every_position}
    runs = [
        lk.train(language_model, sequences(), algorithm, on=on, **settings).result(60)
        for on in (lk.Lockstep(**UNEVEN), lk.Simulator(**UNEVEN, block=3))
    ]
    assert difference(*runs) < TOLERANCE
    assert runs[0].final.accuracies == pytest.approx(runs[1].final.accuracies, abs=1e-3)


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("algorithm", [ParameterServer(), ADPSGD()], ids=repr)
def test_waves_in_stacks_of_any_size_agree(algorithm, block):
    runs = [result(on, algorithm, convolution, peers=5, rounds=4, optimizer=MOMENTUM) for on in
            (lk.Lockstep(**UNEVEN), lk.Simulator(**UNEVEN, block=block))]  # fmt: skip
    assert difference(*runs) < TOLERANCE


@pytest.mark.parametrize("algorithm", [ParameterServer(), ADPSGD()], ids=repr)
def test_accuracies_are_those_of_the_parameters_as_the_slowest_finishes(algorithm):
    runs = [result(on(**UNEVEN), algorithm, peers=5, rounds=8) for on in (lk.Lockstep, lk.Simulator)]
    for one, other in zip(*(run.rows for run in runs), strict=True):
        assert one.accuracies == pytest.approx(other.accuracies, abs=0.006)  # two of 359 on the fence
    assert len(runs[0].final.accuracies) == (5 if isinstance(algorithm, ADPSGD) else 1)


def test_peers_may_have_their_own_optimisers():
    each = [SGD, MOMENTUM, ADAM, MOMENTUM, SGD]
    runs = [result(on(**UNEVEN), ADPSGD(), peers=5, optimizer=each) for on in (lk.Lockstep, lk.Simulator)]
    assert difference(*runs) < TOLERANCE


@pytest.mark.parametrize("on", [lk.Lockstep, lk.Simulator])
def test_same_seed_same_result(on):
    first, again, other = (result(on(**UNEVEN), ADPSGD("complete"), peers=5, seed=seed) for seed in (3, 3, 4))
    assert difference(first, again) == 0
    assert difference(first, other) > 1e-3


def test_what_a_peer_keeps_stays_with_it_in_whatever_company():
    @dataclass(frozen=True)
    class Drag:
        """Pushes half of what it pushed last, and a gradient."""

        asynchronous: ClassVar[bool] = True

        def round(self, peer, batches):
            last = peer.state.get("last", tree.map(torch.zeros_like, peer.params))
            update = tree.map(lambda g, u: g + u / 2, peer.gradients(peer.loss(next(batches))), last)
            peer.state["last"] = update
            peer.params = yield Push(update)

        def server(self, weights, optimizer, peers):
            return ParameterServer().server(weights, optimizer, peers)

    runs = [result(on(**UNEVEN), Drag(), peers=5) for on in (lk.Lockstep, lk.Simulator)]
    assert difference(*runs) < TOLERANCE
    assert difference(runs[0], result(lk.Lockstep(**UNEVEN), ParameterServer(), peers=5)) > 1e-4


# -- who waits for whom


@pytest.mark.parametrize("bound", [0, 1, 3, float("inf")])
def test_pace_lets_nobody_get_further_ahead_than_the_bound(bound):
    random, gate = np.random.default_rng(1), StalenessGate(range(5), bound)
    free, begun = set(range(5)), 0
    for _ in range(400):
        peer = int(random.choice(sorted(free)))
        free.discard(peer)
        for other in gate.finish(peer):
            assert gate.done[other] - min(gate.done.values()) <= bound
            free.add(other)
            begun += 1
        assert gate.slowest == min(gate.done.values())
        held = set(gate.done) - free
        assert all(gate.done[other] - gate.slowest > bound for other in held)  # nobody waits who need not
    assert begun >= 395


def test_who_leaves_is_not_waited_for():
    gate = StalenessGate(range(3), bound=0)
    assert gate.finish(0) == [] and gate.finish(2) == []
    assert gate.leave(1) == [0, 2]
    assert gate.leave(0) == [] and gate.finish(2) == [2] and gate.leave(2) == []


@pytest.mark.parametrize("bound", [0, 1, 3])
@pytest.mark.parametrize("clock", [UNEVEN, FAR], ids=["uneven", "far"])
def test_staleness_keeps_its_bounds(bound, clock):
    """In rounds at most s; in updates at most (2s + 1)(n − 1), for the others are at most s ahead and s behind."""
    history = result(lk.Simulator(**clock), ParameterServer(lk.SSP(bound)), peers=5, rounds=25)
    assert history.timeline.staleness.max() <= bound
    assert history.staleness.shape == (5, 25)
    assert history.staleness.max() <= (0 if bound == 0 else (2 * bound + 1) * 4)


@pytest.mark.parametrize("policy", [lk.BSP(), lk.SSP(2), lk.ASP()], ids=repr)
def test_the_timeline_is_the_one_that_synchronize_predicts(policy):
    history = result(lk.Simulator(**UNEVEN), ParameterServer(policy), peers=5, rounds=12)
    times = np.repeat(1.0 / np.array(UNEVEN["speeds"])[:, None], 12, axis=1)
    predicted = lk.synchronize(times, policy)
    np.testing.assert_allclose(history.timeline.start, predicted.start)
    np.testing.assert_allclose([row.seconds for row in history.rows], predicted.synchronized)
    assert history.timeline.policy == policy


def test_a_message_takes_its_time_both_ways():
    link = lk.Link(latency=0.5, bandwidth=1e4)
    once = 0.5 + sum(p.nbytes for p in mlp().parameters()) / 1e4
    history = result(lk.Simulator(speeds=[1.0], step_seconds=2.0, network=link), ParameterServer(), peers=1, rounds=3)
    assert [row.seconds for row in history.rows] == pytest.approx([k * (2 + 2 * once) - once for k in (1, 2, 3)])


def test_a_row_counts_what_faster_peers_have_sent_by_then():
    size = sum(p.nbytes for p in mlp().parameters())
    history = result(lk.Simulator(speeds=[1.0, 3.5], step_seconds=1.0), ParameterServer(), rounds=4)
    assert [row.bytes / size for row in history.rows] == [2.0, 3.0, 3.5, 4.0]  # (1+3)/2, (2+4)/2, (3+4)/2, (4+4)/2


def test_fewer_bounds_finish_sooner_when_speeds_change_places():
    """With one always slowest all policies end together; who is fast spends less of it waiting under ASP."""
    idle = [result(lk.Simulator(**UNEVEN), it, peers=5, rounds=20).timeline.waiting.sum() for it in SERVED]
    assert idle[0] > idle[1] > idle[2] == 0


# -- steering and refusals in this process


@pytest.mark.parametrize("on", [lk.Lockstep(**UNEVEN), lk.Simulator(**UNEVEN)], ids=["lockstep", "stacked"])
def test_a_run_can_be_stopped_between_any_two_events(on):
    run = lk.train(mlp, lk.data.load("digits"), ParameterServer(), peers=5, rounds=FOREVER // 100, on=on)
    while not run.history.rows and not run.done:
        time.sleep(0.005)
    run.stop()
    history = run.result(timeout=10)
    assert history.stopped and history.staleness.shape == (5, len(history.rows)) and len(history.models) == 5
    assert history.timeline.steps == len(history.rows)


ENGINES = pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])


@ENGINES
def test_a_loss_that_is_no_number_names_the_peer(on):
    with pytest.raises(DivergenceError, match=r"peer \d became (nan|inf).*learning rate"):
        result(on, ParameterServer(), optimizer=partial(torch.optim.SGD, lr=1e30), rounds=50)


@ENGINES
@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("nothing", "its round yields no request.*let each round yield one request"),
        ("a mean", "its round yields Mean: let each round yield one request"),
        ("more", "its round goes on after its request: let each round end with peer.params = yield request"),
        ("twice", "its round goes on after its request"),
    ],
)
def test_rounds_that_are_no_asynchronous_ones_are_refused(on, what, sentence):
    with pytest.raises(ExchangeError, match=f"Wrong is asynchronous, and {sentence}"):
        result(on, Wrong(what))


@ENGINES
def test_different_models_are_refused_where_there_is_a_server(on):
    with pytest.raises(ModelError, match=r"A server keeps one model.*give one model for all"):
        result(on, ParameterServer(), [mlp(), mlp()])


@ENGINES
def test_models_of_other_shapes_cannot_average(on):
    with pytest.raises(ExchangeError, match="different shapes"):
        result(on, ADPSGD(), [mlp(), nn.Linear(64, 10)])


def test_running_statistics_are_refused_before_anything_runs():
    with pytest.raises(ModelError, match=r"lose between two rounds: .*such as GroupNorm"):
        result(None, ADPSGD(), lambda: nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10)))


def test_a_wrapper_around_a_request_is_refused():
    with pytest.raises(SettingError, match=r"works on means.*ParameterServer do not wait.*wrap an algorithm"):
        result(None, Compressed(ParameterServer(), TopK(0.1)))


def test_peers_of_both_kinds_are_refused_before_anything_runs():
    with pytest.raises(SettingError, match="differ in asynchronous"):
        result(None, [ParameterServer(), LocalSGD(1)])
    with pytest.raises(SettingError, match="differ in policy"):
        result(None, [ParameterServer(lk.SSP(1)), ParameterServer(lk.SSP(2))])
