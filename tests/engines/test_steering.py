"""The hand on a run: a learning rate that changes on the way, on every engine, and what ranks tell of their time."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
import torch.distributed as dist

import labkit as lk
from labkit.engines.control import Control
from labkit.engines.lockstep import Lockstep
from labkit.engines.simulator import Simulator
from labkit.history.history import Event
from labkit.training.plan import plan
from labkit.training.run import blank, carry_out
from labkit.training.settings import Settings
from tests.engines.experiments import SGD, difference, mlp

DIGITS = lk.data.load("digits")
ALGORITHMS = [
    lk.algorithms.AllReduce(),
    lk.algorithms.LocalSGD(3),
    lk.algorithms.FedAvg(every=2, participation=0.5),
]
NAP = 0.02  # seconds


class Hand(Control):
    """Asks for a learning rate as the engine begins round `at`."""

    def __init__(self, at: int, rate: float) -> None:
        super().__init__()
        self._left, self._rate = at, rate

    def proceed(self) -> bool:
        self._left -= 1
        if self._left == 0:
            self.set_rate(self._rate)
        return super().proceed()


def changed(on, algorithm, at, rate, rounds=8, **settings):
    """The history of a run in this process whose learning rate changes before round `at`."""
    settings = {"peers": 2, "batch_size": 16, "seed": 3, "optimizer": SGD} | settings
    engine, experiment = plan(Settings(mlp, DIGITS, algorithm, rounds=rounds, on=on, **settings))
    history = blank(engine, experiment)
    carry_out(engine, experiment, history, history.take, Hand(at, rate))
    return history


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda it: type(it).__name__)
def test_a_new_learning_rate_holds_from_its_round_on_alike_on_both_engines(algorithm):
    one, other = (changed(engine, algorithm, at=4, rate=0.01, peers=4) for engine in (Lockstep(), Simulator()))
    assert difference(one, other) < 1e-5
    assert [row.learning_rate for row in one.rows] == [0.1] * 3 + [0.01] * 5
    assert [(it.round, it.text) for it in one.events] == [(4, "learning rate set to 0.01")]
    assert difference(one, changed(Lockstep(), algorithm, at=5, rate=0.01, peers=4)) > 1e-4, "a round later is seen"


def test_a_schedule_goes_on_from_the_new_rate():
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    history = changed(Simulator(), lk.algorithms.AllReduce(), at=3, rate=0.8, rounds=5, schedule=schedule)
    assert [row.learning_rate for row in history.rows] == pytest.approx([0.05, 0.025, 0.4, 0.2, 0.1])


def test_a_schedule_that_remembers_its_beginning_does_so_too():
    schedule = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step))
    history = changed(Lockstep(), lk.algorithms.AllReduce(), at=3, rate=0.1, rounds=4, schedule=schedule)
    # before round 3 the rate is 0.1/3; from 0.1 on, everything is three times as large
    assert [row.learning_rate for row in history.rows] == pytest.approx([0.05, 0.1 / 3, 0.075, 0.06])


@pytest.mark.parametrize("engine", [Lockstep(), Simulator()], ids=lambda it: it.name)
def test_a_server_steps_with_the_new_rate(engine):
    """At the rate zero nothing changes any more."""
    server = lk.algorithms.ParameterServer(policy=lk.BSP())
    still = changed(engine, server, at=9, rate=0.0, rounds=12, evaluate_every=1)
    assert len({row.accuracies for row in still.rows[:4]}) > 1
    assert len({row.accuracies for row in still.rows[6:]}) == 1 and len(still.events) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2], ids=lambda it: type(it).__name__)
def test_all_ranks_heed_a_new_learning_rate_at_the_same_round(lab, algorithm):
    """Lockstep with the change at the round that the event names has the same weights: no rank was early or late."""
    settings = {"peers": 2, "batch_size": 16, "seed": 3, "optimizer": SGD}
    run = lk.train(mlp, DIGITS, algorithm, rounds=60, on=lab, loss=napping(0.0, 0.005), **settings)
    while not run.history.rows:
        time.sleep(0.005)
    run.learning_rate = 0.01
    assert run.learning_rate == 0.01, "what was asked for is read back, though no round has it yet"
    history = run.result(60)
    (event,) = history.events
    assert event.text == "learning rate set to 0.01" and 1 < event.round <= 60
    assert [row.learning_rate for row in history.rows] == [0.1 if k < event.round else 0.01 for k in range(1, 61)]
    reference = changed(Lockstep(), algorithm, at=event.round, rate=0.01, rounds=60)
    assert difference(history, reference) < 1e-4


def test_workers_without_barriers_heed_a_new_learning_rate_too(lab):
    run = lk.train(mlp, DIGITS, lk.algorithms.ParameterServer(lk.ASP()), rounds=800, on=lab, evaluate_every=1)
    while not run.history.rows:
        time.sleep(0.005)
    run.learning_rate = 0.0
    history = run.result(60)
    (event,) = history.events
    assert isinstance(event, Event) and len({row.accuracies for row in history.rows[-5:]}) == 1
    assert run.learning_rate == 0.0


def napping(*seconds):
    """The usual loss, for which rank k takes so many seconds longer."""

    def loss(outputs, targets):
        if dist.is_initialized():
            time.sleep(seconds[dist.get_rank()])
        return torch.nn.functional.cross_entropy(outputs, targets)

    return loss


@pytest.mark.parametrize("ddp", [lk.DDP(), None], ids=["DDP", "generator"])
def test_lanes_show_who_computes_longer_and_who_waits(lab, ddp):
    run = lk.train(mlp, DIGITS, peers=2, rounds=40, on=lk.Cluster(lab, ddp=ddp), loss=napping(0.0, NAP))
    run.result(60)
    lanes = {lane: [it for it in kept if it.arrived < it.done] for lane, kept in run._lanes._lanes.items()}
    assert set(lanes) == {0, 1} and min(map(len, lanes.values())) >= 10
    for interval in (it for kept in lanes.values() for it in kept):
        assert interval.begun <= interval.arrived <= interval.met <= interval.done
        assert interval.overlapped is (ddp is not None)
    waited, computed = ({lane: [f(it) for it in kept] for lane, kept in lanes.items()} for f in (wait, compute))
    assert median(waited[0]) > 0.7 * NAP > 0.3 * NAP > median(waited[1])
    assert median(computed[1]) > NAP > 0.7 * NAP > median(computed[0])
    assert run.lanes().alt == "When 2 ranks computed, waited and communicated"


def wait(interval):
    return interval.met - interval.arrived


def compute(interval):
    return interval.arrived - interval.begun


def median(values):
    return sorted(values)[len(values) // 2]


def test_a_virtual_clock_predicts_its_lanes_while_the_run_goes_on():
    clocked = Simulator(network=lk.Link(0.5, 1e12), speeds=[1.0, 0.25], step_seconds=1.0)
    run = lk.train(mlp, DIGITS, lk.algorithms.LocalSGD(2), peers=2, rounds=5, on=clocked)
    run.result(60)
    fast, slow = (run._lanes._lanes[lane][0] for lane in (0, 1))
    assert (fast.begun, fast.arrived, fast.met) == (0.0, 2.0, 8.0) and fast.done > 8.0
    assert (slow.arrived, slow.met, slow.done) == (8.0, 8.0, fast.done)
    assert run.lanes() is not None


def test_peers_that_ask_and_go_on_have_lanes_without_a_meeting():
    clocked = Simulator(network=lk.Link(0.5, 1e12), speeds=[1.0, 0.25], step_seconds=1.0)
    run = lk.train(mlp, DIGITS, lk.algorithms.ParameterServer(lk.ASP()), peers=2, rounds=5, on=clocked)
    run.result(60)
    first = run._lanes._lanes[0][0]
    assert (
        first.met is None and (first.begun, first.arrived) == (0.0, 1.0) and first.done == pytest.approx(2.0, abs=0.01)
    )
    assert run.lanes() is not None


def test_without_a_clock_a_simulator_has_no_lanes():
    run = lk.train(mlp, DIGITS, peers=2, rounds=3)
    run.result(60)
    assert run.lanes() is None


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf"), "0.1", None, True])
def test_what_is_no_learning_rate_is_refused(rate):
    run = lk.train(mlp, DIGITS, peers=2, rounds=100_000)
    try:
        with pytest.raises(lk.errors.SettingError, match=r"learning_rate is .*; give a number from 0 on"):
            run.learning_rate = rate
    finally:
        run.stop()
        run.result(20)
    with pytest.raises(lk.errors.SettingError, match="The run has ended"):
        run.learning_rate = 0.1
