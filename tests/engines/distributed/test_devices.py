"""Ranks compute on GPUs of their own or on CPUs, all alike; other clusters are refused with what helps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import labkit as lk
from labkit.algorithms import ADPSGD, AllReduce
from labkit.cluster.lab import Lab
from labkit.cluster.workers import WorkerInfo, Workers
from labkit.engines.cluster import common_device
from labkit.errors import SettingError
from tests.engines.experiments import difference, mlp, result


def worker(number, gpu=None, host="10.0.0.1"):
    return WorkerInfo(str(number), f"tcp://{host}:{4000 + number}", 1, 0, 1, () if gpu is None else (gpu,))


def test_workers_with_a_gpu_each_compute_on_them():
    assert common_device([worker(0, "0"), worker(1, "1"), worker(2, "0", host="10.0.0.2")], "ssh", None) == "cuda"


def test_workers_without_gpus_compute_on_their_cores():
    assert common_device([worker(0), worker(1)], "ssh", None) == "cpu"


def test_a_mixed_cluster_is_refused_with_its_remedy_or_runs_on_cpus_when_told():
    mixed = [worker(0, "0"), worker(1), worker(2, "1")]
    with pytest.raises(SettingError, match=r'1 of 3 workers \(tcp://10.0.0.1:4001\) has no GPU.*device="cpu"'):
        common_device(mixed, "tcp", None)
    assert common_device(mixed, "tcp", "cpu") == "cpu"


def test_two_ranks_on_one_gpu_are_refused_in_one_sentence():
    both = [worker(0, "0"), worker(1, "0")]
    with pytest.raises(SettingError, match=r'4000 and tcp.*4001 would compute on one GPU.*lk.connect\("gpu"\)'):
        common_device(both, "tcp", None)
    assert common_device(both, "tcp", "cpu") == "cpu"


def test_local_workers_stand_for_the_cores_of_a_machine_that_has_a_gpu():
    assert common_device([worker(0, "0"), worker(1, "0")], "local", None) == "cpu"


@pytest.fixture
def mixed(lab, monkeypatch):
    """The real lab, one of whose workers claims to have a GPU, as if somebody else had started it."""
    actual = Lab.workers.fget

    def claimed(self):
        first, *others = actual(self)
        return Workers([replace(first, gpus=("0",)), *others])

    monkeypatch.setattr(Lab, "workers", property(claimed))
    monkeypatch.setattr(lab, "kind", "tcp")
    return lab


@pytest.mark.parametrize("algorithm", [AllReduce(), ADPSGD()], ids=repr)
def test_a_run_on_a_mixed_cluster_ends_before_it_begins(mixed, algorithm):
    with pytest.raises(SettingError, match=r'device="cpu"'):
        lk.train(mlp, lk.data.load("digits"), algorithm, peers=2, on=mixed).result(timeout=30)


def test_a_run_on_a_mixed_cluster_trains_on_cpus_when_told(mixed):
    history = result(lk.Cluster(mixed, device="cpu"), AllReduce())
    assert difference(history, result(lk.Lockstep(), AllReduce())) < 1e-5


def test_a_run_on_the_cpu_leaves_nothing_on_a_gpu(lab):
    """Every tensor of a rank is where it was told to be."""

    class Where:
        def round(self, peer, batches):
            inputs, targets = next(batches)
            found = {it.device.type for it in (inputs, targets, *peer.params.values())}
            assert found == {"cpu"}
            peer.step(peer.loss((inputs, targets)))
            yield from ()

    history = lk.train(
        mlp, lk.data.load("digits"), Where(), peers=2, rounds=1, on=lk.Cluster(lab, device="cpu")
    ).result(60)
    assert all(p.device == torch.device("cpu") for model in history.models for p in model.parameters())
