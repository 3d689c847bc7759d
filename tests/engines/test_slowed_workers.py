"""A worker slowed by `lab.slow` while models train: it holds everybody up, or itself alone, as the algorithm says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce, ParameterServer
from labkit.cluster.lab import Lab
from labkit.history.history import History
from tests.engines.experiments import SGD

pytestmark = pytest.mark.alone

FACTOR = 8


def trained(lab: Lab, algorithm: object, factor: float) -> History:
    """The history of a run beside which worker 1 is slow by this factor."""
    lab.slow(1, factor)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    settings = {"peers": 2, "rounds": 50, "batch_size": 256, "evaluate_every": 50, "optimizer": SGD}
    return lk.train(model, lk.data.load("digits"), algorithm, on=lab, **settings).result(timeout=60)


@pytest.fixture
def slowable(lab: Lab) -> Iterator[Lab]:
    """The lab of all tests, given back as fast as it was."""
    yield lab
    lab.slow(1, 1)


def test_under_all_reduce_one_slow_worker_makes_all_slow(slowable: Lab) -> None:
    even, uneven = (trained(slowable, AllReduce(), factor) for factor in (1, FACTOR))
    assert uneven.seconds > 2.5 * even.seconds
    ends = uneven.timeline.finish[:, -1]
    assert ends[0] == pytest.approx(ends[1], rel=0.1)


def test_under_asp_a_slow_worker_is_slow_alone(slowable: Lab) -> None:
    ends = trained(slowable, ParameterServer(lk.ASP()), FACTOR).timeline.finish[:, -1]
    assert ends[0] / ends[1] < 0.6, ends
