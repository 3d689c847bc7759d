"""The engines on a GPU agree with each other and with the CPU, for every algorithm."""

from __future__ import annotations

import pytest
import torch

import labkit as lk
from labkit.algorithms import AllReduce, CoTeaching, LocalSGD
from tests.engines.experiments import ADAM, MOMENTUM, convolution, difference, mlp, parameters, result
from tests.engines.test_agreement import ALGORITHMS, run

TOLERANCE = 1e-4


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_stacked_peers_on_the_gpu_are_the_loop_over_peers(algorithm):
    peers = 6 if isinstance(algorithm, CoTeaching) else 5
    loop = run(lk.Lockstep(device="cuda"), algorithm, peers=peers)
    assert difference(loop, run(lk.Simulator(device="cuda"), algorithm, peers=peers)) < TOLERANCE


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_workers_on_gpus_are_the_loop_over_peers(gpus, algorithm):
    """More peers than GPUs: each worker has a stack of them, and NCCL joins the workers where there are several."""
    peers = 6 if isinstance(algorithm, CoTeaching) else 5
    loop = run(lk.Lockstep(device="cuda"), algorithm, peers=peers)
    assert difference(loop, run(gpus, algorithm, peers=peers)) < TOLERANCE


@pytest.mark.parametrize("model", [mlp, convolution])
@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM], ids=["momentum", "adam"])
def test_gpu_and_cpu_train_alike(model, optimizer):
    settings = {"model": model, "optimizer": optimizer, "peers": 3}
    loop = result(lk.Lockstep(), LocalSGD(every=2), **settings)
    assert difference(loop, result(lk.Simulator(device="cuda"), LocalSGD(every=2), **settings)) < TOLERANCE


@pytest.mark.parametrize("ddp", [lk.DDP(), lk.DDP(sync_batchnorm=True), lk.DDP(hook="fp16"), None], ids=repr)
def test_data_parallel_on_gpus(gpus, ddp):
    """One rank per GPU under DistributedDataParallel with NCCL; a single GPU is a group of one."""
    peers = len(gpus.workers)
    loop = result(lk.Lockstep(device="cuda"), AllReduce(accumulate=2), peers=peers, clip=1.0)
    found = result(lk.Cluster(gpus, ddp=ddp), AllReduce(accumulate=2), peers=peers, clip=1.0)
    assert difference(loop, found) < (1e-2 if ddp is not None and ddp.hook else TOLERANCE)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_on_gpus(gpus, precision):
    peers = len(gpus.workers)
    settings = {"peers": peers, "rounds": 20, "precision": precision}
    loop, found = (result(on, AllReduce(), **settings) for on in (lk.Lockstep(device="cuda"), gpus))
    assert difference(loop, found) < 1e-2
    assert found.final.loss < found.rows[0].loss


def where():
    return torch.cuda.is_initialized(), torch.distributed.get_backend_config()


def test_ranks_have_a_gpu_each_and_nccl_between_them(gpus):
    """Training was on the GPU, or CUDA would not have begun there."""
    result(gpus, AllReduce(), peers=len(gpus.workers), rounds=2)
    for initialized, backend in gpus.launch(where).result(60):
        assert initialized and "cuda:nccl" in backend


def test_ranks_stay_on_the_cpu_when_told(gpus):
    peers = len(gpus.workers)
    loop = result(lk.Lockstep(), AllReduce(), peers=peers)
    found = result(lk.Cluster(gpus, device="cpu"), AllReduce(), peers=peers)
    assert float((parameters(loop) - parameters(found)).abs().max()) < 1e-5
