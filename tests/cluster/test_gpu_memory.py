"""What GPUs hold is asked of nvidia-smi and shown where there are GPUs; what a failed rank held is given back."""

from __future__ import annotations

import os
import re
import time
import weakref

import pytest
import torch

import labkit as lk
from labkit.cluster.display import lab_page
from labkit.cluster.machine import gpu_memory
from labkit.cluster.workers import WorkerInfo, gpu_memory_now
from labkit.errors import GangError
from tests.engines.experiments import SGD, mlp

LISTED = """0, GPU-aaaa-1111, 1024, 81559
1, GPU-bbbb-2222, 2048, 81559
2, GPU-cccc-3333, [N/A], [N/A]
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A machine whose nvidia-smi lists three GPUs, the last of which does not tell."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return monkeypatch


@pytest.mark.parametrize(
    ("visible", "found"),
    [("1", ((2 << 30, 81559 << 20),)), ("GPU-aaaa", ((1 << 30, 81559 << 20),)), ("2", ()), ("", ()), ("7", ())],
)
def test_memory_is_that_of_the_gpus_that_a_process_may_see(smi, visible, found):
    smi.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_memory() == found


def test_a_machine_without_nvidia_smi_has_nothing_to_tell(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpu_memory() == ()


def test_workers_answer_for_their_own_machine(lab):
    assert set(lab.client.run(gpu_memory_now).values()) == {gpu_memory()}


def test_the_page_shows_device_memory_only_where_there_are_gpus():
    workers = [WorkerInfo("0", "tcp://a", 1, 0, 7, gpus=("1",)), WorkerInfo("1", "tcp://b", 1, 0, 8)]
    page = lab_page("Lab", None, workers, {}, {"tcp://a": ((20 << 30, 80 << 30),)})
    assert "device memory" in page and "20 GiB of 80 GiB" in page and "width:25%" in page
    assert len(re.findall(r"<td[^>]*>", page)) == 14
    assert "device memory" not in lab_page("Lab", None, workers, {}, {})


# -- after an error


def remember(tensor):
    torch.labkit_test_refs = [*getattr(torch, "labkit_test_refs", []), weakref.ref(tensor)]


def alive():
    refs = torch.__dict__.pop("labkit_test_refs", [])
    deadline = time.monotonic() + 2  # the worker is told to let go of a failed task just after the client has heard
    while any(ref() is not None for ref in refs) and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(refs), sum(ref() is not None for ref in refs)


def failing():
    activations = torch.ones(1000)
    cycle = [activations]
    cycle.append(cycle)
    remember(activations)
    raise ZeroDivisionError("with an activation in its frame")


def test_a_failed_rank_keeps_no_tensor(lab):
    with pytest.raises(GangError, match="ZeroDivisionError"):
        lab.launch(failing, ranks=2).result(60)
    assert lab.launch(alive, ranks=2).result(60) == [(1, 0)] * 2


def test_a_failed_training_keeps_neither_model_nor_batch_nor_optimizer(lab):
    def faulty(outputs, targets):
        if torch.distributed.is_initialized() and torch.is_grad_enabled():
            remember(outputs)
            remember(optimized[0])
            raise ZeroDivisionError("my own mistake")
        return torch.nn.functional.cross_entropy(outputs, targets)

    optimized = []

    def optimizer(params):
        params = list(params)
        optimized[:] = params
        return SGD(params)

    halved = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2)  # noqa: E731
    run = lk.train(mlp, lk.data.load("digits"), peers=2, on=lab, loss=faulty, optimizer=optimizer, schedule=halved)
    with pytest.raises(GangError, match="my own mistake"):
        run.result(60)
    assert lab.launch(alive, ranks=2).result(60) == [(2, 0)] * 2
