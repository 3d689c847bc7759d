"""A prediction of the virtual clock and a measurement on real workers are timelines of one kind, and overlay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import labkit as lk
from labkit.algorithms import AllReduce, FedDF, FedMD, LocalSGD
from labkit.exchange import Gather, Mean
from labkit.tasks.sync import Timeline
from tests.engines.experiments import mlp, result

CLOCK = lk.Simulator(network=lk.Link(latency=1e-4, bandwidth=1e9), step_seconds=1e-3)


@dataclass(frozen=True)
class Late:
    """Talks before its step, and afterwards."""

    def round(self, peer, batches):
        inputs, _ = batch = next(batches)
        yield Gather(peer.logits(inputs).detach())
        peer.step(peer.loss(batch))
        peer.params = yield Mean(peer.params)


@pytest.mark.parametrize("algorithm", [AllReduce(), AllReduce(form="ring"), LocalSGD(every=3), Late()], ids=str)
def test_a_real_run_overlays_its_prediction(lab, algorithm):
    real, predicted = (result(on, algorithm).timeline for on in (lab, CLOCK))
    assert isinstance(real, Timeline) and isinstance(predicted, Timeline)
    assert (real.kind, predicted.kind) == ("measured", "predicted")
    assert real.start.shape == predicted.start.shape == (2, 6)  # an interval of steps in each round
    for one, other in ((real, predicted), (predicted, real)):
        picture = one.plot(beside=other)
        assert picture.alt == "Timeline of 2 peers and 6 steps, BSP(), measured; below it the predicted one"
        assert picture.png() != one.plot().png()


def test_what_was_measured_happened_within_the_run(lab):
    history = result(lab, LocalSGD(every=3))
    line = history.timeline
    assert (line.finish > line.start).all() and line.makespan <= history.seconds


def test_the_prediction_by_hand():
    line = result(CLOCK, LocalSGD(every=3)).timeline
    travel = 2 * (1e-4 + 4 * 2410 / 2 / 1e9)  # 2 (n − 1) moves of half of the parameters each, for n = 2
    start = np.arange(6) * (3e-3 + travel)
    assert line.start == pytest.approx(np.stack([start] * 2)) and line.finish == pytest.approx(line.start + 3e-3)


@pytest.mark.parametrize("on", [lk.Lockstep, lk.Simulator])
@pytest.mark.parametrize(
    ("algorithm", "steps"),
    [(FedMD(every=2, public=3, warmup=1), 2 + 2 * (3 + 2)), (FedDF(every=3, public=2), 3 * (3 + 2))],
    ids=repr,
)
def test_to_digest_predictions_takes_the_time_of_as_many_steps(on, algorithm, steps):
    private, public = lk.data.load("digits").hold_out(0.2)
    clock = on(network=CLOCK.network, step_seconds=1e-3)
    line = lk.train(mlp, private, algorithm, peers=3, rounds=3, public=public, on=clock).result(60).timeline
    assert (line.finish - line.start).sum(1) == pytest.approx([steps * 1e-3] * 3)


def test_several_peers_of_one_worker_work_together(lab):
    line = result(lab, LocalSGD(every=3), peers=4).timeline
    assert line.workers == 4 and (line.start[0] == line.start[1]).all() and repr(line).startswith("Timeline of 4 peers")


def test_many_peers_are_called_peers_too():
    line = result(CLOCK, AllReduce(), peers=70, rounds=2).timeline
    assert line.plot().png() and "70 peers" in line.plot().alt
