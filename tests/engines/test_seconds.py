"""History.seconds means one thing on every engine: training, without evaluation, pauses and a reader's idle time."""

from __future__ import annotations

import time

import pytest
import torch

import labkit as lk
from labkit.algorithms import ADPSGD, AllReduce, FedAvg, LocalSGD, ParameterServer
from tests.engines.experiments import SGD, mlp, result

ENGINES = ["lockstep", "stacked", "cluster"]
TEST, LOOK, STEP, REST = 0.4, 1.0, 0.02, 1.0  # seconds


class SlowlyTested(torch.nn.Module):
    """Takes its time when it is asked for predictions, and none when it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        if not self.training:
            time.sleep(TEST)
        return self.net(x)


def slow(outputs, targets):
    """The usual loss, which takes its time."""
    time.sleep(STEP)
    return torch.nn.functional.cross_entropy(outputs, targets)


def since_the_first_round(history):
    """The first round of a process may take long: it imports half of torch."""
    return history.seconds - history.rows[0].seconds


@pytest.fixture
def engine(request):
    """The engine of the given name."""
    if request.param == "cluster":
        return lk.Cluster(request.getfixturevalue("lab"), ddp=None)
    return {"lockstep": lk.Lockstep(), "stacked": lk.Simulator()}[request.param]


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.parametrize(
    "algorithm",
    [AllReduce(), FedAvg(every=1, participation=1.0), ParameterServer(lk.BSP()), ADPSGD()],
    ids=lambda it: type(it).__name__,
)
def test_evaluation_does_not_count_and_training_does(engine, algorithm):
    history = result(engine, algorithm, SlowlyTested, rounds=2, evaluate_every=1, loss=slow)
    assert len(history.curve("accuracies")[0]) == 2
    assert STEP <= since_the_first_round(history) < TEST
    if history.timeline is not None and history.staleness is None:  # else some may work while others are tested
        assert history.timeline.makespan <= history.seconds


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.parametrize("algorithm", [AllReduce(), ParameterServer(), ADPSGD()], ids=lambda it: type(it).__name__)
def test_a_pause_does_not_count(engine, algorithm):
    run = lk.train(
        mlp, lk.data.load("digits"), algorithm, peers=2, rounds=60, batch_size=16, optimizer=SGD, loss=slow, on=engine
    )
    while not run.history.rows:
        time.sleep(0.005)
    begun, before = time.monotonic(), run.history.seconds
    run.pause()
    time.sleep(1.0)  # until ranks have heard of it
    seen = len(run.history.rows)
    time.sleep(REST)
    assert len(run.history.rows) == seen < 60
    run.resume()
    history = run.result(60)
    assert len(history.rows) == 60 and history.seconds >= 60 * STEP
    assert history.seconds - before < time.monotonic() - begun - REST


def test_what_a_reader_does_between_two_steps_does_not_count():
    steps = lk.step_through(mlp, lk.data.load("digits"), LocalSGD(every=2), peers=2, rounds=2, batch_size=16, loss=slow)
    for _ in steps:
        time.sleep(LOOK)
    assert 2 * 2 * STEP <= since_the_first_round(steps.history) < LOOK
