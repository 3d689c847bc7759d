"""What a notebook sets after its workers have started reaches them, with each map and each launch."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import labkit as lk
from labkit.cluster.kernel_settings import KernelSettings, SettingsWatch
from labkit.cluster.lab import Lab
from labkit.cluster.shipping import pack, unpack


def seen(*_: Any) -> tuple[Any, ...]:
    return str(torch.get_default_dtype()), str(Path.cwd()), os.environ.get("MY_FLAG"), "/mine" in sys.path


def test_workers_and_ranks_follow_the_kernel_there_and_back(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(Path.cwd())
    assert lab.map(seen, [0]).result() == [("torch.float32", here, None, False)]
    with monkeypatch.context() as patch:
        patch.setenv("MY_FLAG", "on")
        patch.setenv("MY_TOKEN", "secret")
        patch.chdir(tmp_path)
        patch.syspath_prepend("/mine")
        torch.set_default_dtype(torch.float64)
        try:
            expected = ("torch.float64", str(tmp_path), "on", True)
            assert lab.map(seen, [0, 1]).result() == [expected] * 2
            assert lab.launch(seen, ranks=2).result() == [expected] * 2
            assert lab.map(lambda name: os.environ.get(name), ["MY_TOKEN"]).result() == [None]
            lab.kill(0)
            assert lab.map(seen, range(4)).result(timeout=60) == [expected] * 4  # also a worker that comes back
        finally:
            torch.set_default_dtype(torch.float32)
    assert lab.map(seen, range(4)).result() == [("torch.float32", here, None, False)] * 4


def test_a_model_that_reads_the_default_dtype_trains_alike_on_workers(lab: Lab) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.l(x.to(torch.get_default_dtype()))
            return out

    torch.set_default_dtype(torch.float64)
    try:
        runs = [lk.train(Net, lk.data.load("digits"), peers=2, rounds=3, seed=1, on=on) for on in (lk.Lockstep(), lab)]
        losses = [[row.loss for row in run.result(timeout=60).rows] for run in runs]
    finally:
        torch.set_default_dtype(torch.float32)
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def test_workers_of_other_machines_hear_of_the_default_dtype_only(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = SettingsWatch(local=False)
    monkeypatch.setenv("MY_FLAG", "on")
    assert watch.now() == KernelSettings("float32")


def test_a_variable_that_is_set_back_is_heard_of_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = SettingsWatch(local=True)
    monkeypatch.setenv("MY_FLAG", "on")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert watch.now().environment == {"MY_FLAG": "on"}
    monkeypatch.delenv("MY_FLAG")
    assert watch.now().environment == {"MY_FLAG": None}


def test_a_folder_that_is_gone_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # to be back at the end
    fn, settings = unpack(pack(abs, settings=KernelSettings(folder=str(tmp_path / "gone"))))
    assert fn(-1) == 1 and settings.folder == str(tmp_path / "gone") and Path.cwd() == tmp_path
