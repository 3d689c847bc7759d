"""Device memory is shown, and given back after an error."""

from __future__ import annotations

import pytest
import torch

import labkit as lk
from labkit.cluster.workers import gpu_memory_now
from labkit.errors import GangError
from tests.engines.experiments import mlp

MANY = 1 << 30  # bytes, of which cuBLAS keeps a sixteenth for its own use


def in_use():
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def failing():
    numbers = torch.ones(MANY // 4, device="cuda")
    cycle = [numbers]
    cycle.append(cycle)
    raise ZeroDivisionError("with a gigabyte in its frame")


def test_a_failed_rank_gives_its_device_memory_back(gpus):
    with pytest.raises(GangError, match="ZeroDivisionError"):
        gpus.launch(failing).result(60)
    for allocated, reserved in gpus.launch(in_use).result(60):
        assert allocated < MANY / 8 and reserved < MANY / 2


def test_a_failed_training_gives_its_device_memory_back(gpus):
    class Faulty(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.spare = mlp(), torch.nn.Parameter(torch.zeros(MANY // 4))

        def forward(self, x):
            if x.is_cuda and torch.is_grad_enabled():
                raise ZeroDivisionError("my own mistake")
            return self.net(x) + self.spare[0]

    with pytest.raises(GangError, match="my own mistake"):
        lk.train(Faulty, lk.data.load("digits"), peers=len(gpus.workers), on=gpus).result(120)
    for allocated, reserved in gpus.launch(in_use).result(60):
        assert allocated < MANY / 8 and reserved < MANY / 2


def test_workers_tell_what_their_gpus_hold(gpus):
    """nvidia-smi counts what torch counts, and the memory of its context besides."""
    told = gpus.client.run(gpu_memory_now)
    for worker, total in zip(gpus.workers, gpus.launch(whole).result(60), strict=True):
        ((used, all_of_it),) = told[worker.address]
        assert 0 < used < all_of_it
        assert all_of_it == pytest.approx(total, rel=0.05)


def whole():
    return torch.cuda.mem_get_info()[1]
