"""Workers that hold parts of a model: the same result as in one process, measured bytes, recovery after a kill."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce, ExpertParallel, Pipeline, SequenceParallel, TensorParallel, ZeRO
from labkit.cluster.local import local_cluster
from labkit.errors import SettingError
from labkit.models import next_token
from tests.algorithms.test_experts_and_sequences import experts_gpt, mixture
from tests.algorithms.test_large import characters, deep, distance, gpt, mlp, trained


@pytest.mark.parametrize("peers", [2, 4])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_on_workers_is_all_reduce_in_one_process(lab, stage, peers):
    whole = trained(mlp(), lk.data.load("digits"), AllReduce(), "momentum", peers=peers, on=lk.Lockstep())
    split = trained(mlp(), lk.data.load("digits"), ZeRO(stage), "momentum", peers=peers, on=lab)
    assert distance(whole, split) < 1e-5
    assert split.final.accuracy == pytest.approx(whole.final.accuracy, abs=1e-6)


def test_tensor_parallel_on_workers_is_one_process(lab):
    settings = {"peers": 2, "loss": next_token}
    one = trained(gpt(), characters(), TensorParallel(), "adamw", on=lk.Lockstep(), **settings)
    assert distance(one, trained(gpt(), characters(), TensorParallel(), "adamw", on=lab, **settings)) < 1e-5


@pytest.mark.parametrize(
    ("model", "peers", "optimizer"), [(mixture, 2, "momentum"), (mixture, 4, "sgd"), (experts_gpt, 2, "adamw")]
)
def test_expert_parallel_on_workers_is_one_process(lab, model, peers, optimizer):
    data, loss = (characters(), next_token) if model is experts_gpt else (lk.data.load("digits"), None)
    settings = {"peers": peers} | ({"loss": loss} if loss else {})
    one, real = (
        trained(model(), data, algorithm, optimizer, on=on, **settings)
        for algorithm, on in ((AllReduce(), lk.Lockstep()), (ExpertParallel(), lab))
    )
    assert distance(one, real) < 1e-5


@pytest.mark.parametrize(("peers", "optimizer"), [(2, "adamw"), (4, "momentum")])
def test_ring_attention_on_workers_is_one_process(lab, peers, optimizer):
    settings = {"peers": peers, "loss": next_token}
    one, real = (
        trained(gpt(), characters(), SequenceParallel(), optimizer, on=on, **settings) for on in (lk.Lockstep(), lab)
    )
    assert distance(one, real) < 1e-5
    if peers == 2:
        assert real.bytes == pytest.approx(one.bytes)


@pytest.mark.parametrize(
    "algorithm", [Pipeline(4), Pipeline(4, "zero-bubble"), Pipeline(4, "interleaved", interleave=2)]
)
def test_a_pipeline_on_workers_is_one_process(lab, algorithm):
    one, real = (trained(deep(), lk.data.load("digits"), algorithm, "momentum", peers=2, on=on) for on in (None, lab))
    assert distance(one, real) < 1e-5
    assert real.bytes == pytest.approx(one.bytes) and real.final.accuracy == pytest.approx(one.final.accuracy)


def test_stages_want_a_worker_each(lab):
    with pytest.raises(SettingError, match="wants a worker for each, and there are 2: take peers=2"):
        trained(deep(), lk.data.load("digits"), Pipeline(4), peers=4, on=lab)


def test_what_workers_send_is_the_formula(lab):
    simulated, real = (trained(mlp(), lk.data.load("digits"), ZeRO(3), peers=2, rounds=5, on=on) for on in (None, lab))
    assert real.bytes == pytest.approx(simulated.bytes) and real.bytes > 0


def test_a_killed_worker_takes_no_part_of_the_model_along():
    """Parts are in the checkpoints by peer, so the run ends as it would have."""
    with local_cluster(2, threads=1, memory=2 << 30) as cluster, lk.connect(cluster) as lab:
        settings = {"peers": 2, "rounds": 60, "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9)}
        on = lk.Cluster(lab, checkpoint_every=5)
        run = lk.train(mlp(), lk.data.load("digits"), ZeRO(3), on=on, **settings)
        while run.progress < 20:
            time.sleep(0.01)
        os.kill(lab.workers[1].pid, signal.SIGKILL)
        ended = run.result(timeout=90)
        assert [event.kind for event in ended.events][:1] == ["lost"]
        assert distance(ended, lk.train(mlp(), lk.data.load("digits"), ZeRO(3), **settings).result()) < 1e-5


def test_layers_without_parameters_and_frozen_ones_stay_as_they_are(lab):
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    model[0].requires_grad_(False)
    split = trained(model, lk.data.load("digits"), ZeRO(3), peers=2, on=lab)
    assert torch.equal(split.models[0][0].weight, model[0].weight)
    assert distance(trained(model, lk.data.load("digits"), AllReduce(), peers=2), split) < 1e-5
