"""What a worker is like: prepared, also after a death, with its own GPU, and no trouble to the kernel."""

from __future__ import annotations

import json
import os
import signal
import time

import dask
import pytest

import labkit as lk
from labkit.cluster.lab import Lab
from labkit.cluster.local import open_gpus
from labkit.cluster.workers import WorkerInfo, WorkerRequest
from labkit.errors import ConnectError, SettingError
from tests.cluster.kernels import run


def test_the_kernels_own_environment_stays() -> None:
    ended = run(
        """
        import os, time
        before = dict(os.environ)
        import labkit as lk
        lab = lk.connect(workers=1)
        changed = lambda: {name for name in before | os.environ if before.get(name) != os.environ.get(name)}
        print(changed())
        lab.restart_workers()
        deadline = time.monotonic() + 20
        while len(changed()) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)        # a worker is back a moment before its nanny has noticed
        print(changed())
        print(lab.client.submit(os.getenv, "OMP_NUM_THREADS").result())
        """,
        env={name: value for name, value in os.environ.items() if "THREADS" not in name and "MALLOC" not in name},
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["{'__DASK_PARENT_PID'}", "{'__DASK_PARENT_PID'}", "1"]


def test_a_worker_that_comes_back_is_prepared_like_the_first(lab: Lab) -> None:
    def prepared() -> tuple[int, bool]:
        import time

        import torch

        until = time.monotonic() + 20
        while torch.get_num_threads() != 1 and time.monotonic() < until:
            time.sleep(0.05)  # the preparation runs in the background
        return torch.get_num_threads(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    victim = lab.workers[0]
    fresh = killed(lab)
    assert fresh.name == victim.name
    assert lab.client.submit(prepared, workers=[fresh.address], pure=False).result(timeout=30) == (1, True)


def killed(lab: Lab) -> WorkerInfo:
    """Kill the first of two workers and wait for the process that takes its place."""
    victim = lab.workers[0]
    os.kill(victim.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while victim.pid in (pids := [worker.pid for worker in lab.workers]) or len(pids) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return lab.workers[0]


def test_a_worker_comes_back_however_long_it_takes(lab: Lab) -> None:
    # Dask's own local clusters give a worker up that is absent when this time is over: also one that is just starting
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "100 ms"}):
        assert killed(lab).name == "0"
    assert lab.map(abs, [-1, -2, -3]).result() == [1, 2, 3]


def test_an_interrupt_of_the_whole_process_group_leaves_the_workers_alone(lab: Lab) -> None:
    pids = [worker.pid for worker in lab.workers]
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert lab.map(abs, range(-4, 0)).result() == [4, 3, 2, 1]
    assert [worker.pid for worker in lab.workers] == pids


def test_a_task_may_have_child_processes(lab: Lab) -> None:
    def load(count: int) -> list[int]:
        import torch

        return [int(batch.sum()) for batch in torch.utils.data.DataLoader(range(count), batch_size=4, num_workers=1)]

    assert lab.map(load, [8]).result() == [[6, 22]]


def test_the_import_of_torch_keeps_no_task_waiting() -> None:
    ended = run(
        """
        import sys, time
        import labkit as lk
        lab = lk.connect(workers=1)
        print(lab.client.submit(lambda: "torch.nn" in sys.modules).result())
        deadline = time.monotonic() + 30
        while not lab.client.submit(lambda: "torch.nn" in sys.modules, pure=False).result():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        print("imported")
        """
    )
    assert ended.stdout.split() == ["False", "imported"]


def test_each_gpu_worker_sees_its_own_gpu() -> None:
    with open_gpus(WorkerRequest(), devices=["0", "GPU-5d3c"]) as lab:
        assert [worker.gpus for worker in lab.workers] == [("0",), ("GPU-5d3c",)]
        assert repr(lab) == "Lab: 2 workers × 1 thread, gpu"
    with pytest.raises(SettingError, match="share"):
        open_gpus(WorkerRequest(workers=2), devices=["0"])


def test_gpu_without_a_gpu_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConnectError, match=r"no NVIDIA GPU.*lk\.connect\(\)"):
        lk.connect("gpu")


def test_dask_seldom_looks_at_itself_on_local_workers_and_the_kernels_configuration_stays(lab: Lab) -> None:
    def looks(dask_worker: object) -> tuple[float, bool]:
        return dask_worker._tick_interval, dask.config.get("distributed.worker.profile.enabled")

    assert set(lab.client.run(looks).values()) == {(0.5, False)}
    assert lab.cluster.scheduler._tick_interval == 0.5
    assert dask.config.get("distributed.worker.profile.enabled")


@pytest.mark.parametrize("library", ["torch", "numpy", "random"])
def test_no_two_workers_ever_draw_the_same_numbers(labs_and_restarts: list[dict[str, float]], library: str) -> None:
    drawn = [numbers[library] for numbers in labs_and_restarts]
    assert len(drawn) == 2 * 3 and len(set(drawn)) == len(drawn)


@pytest.fixture(scope="module")
def labs_and_restarts() -> list[dict[str, float]]:
    """The first numbers of the two workers of a lab, of the same after a restart, and of those of a second lab."""
    ended = run(
        """
        import json
        import labkit as lk

        def drawn():
            import random
            import numpy as np
            import torch
            return {"torch": torch.rand(1).item(), "numpy": np.random.rand(), "random": random.random()}

        found = []
        with lk.connect(workers=2) as lab:
            found += lab.client.run(drawn).values()
            lab.restart_workers()
            found += lab.client.run(drawn).values()
        with lk.connect(workers=2) as lab:
            found += lab.client.run(drawn).values()
        print(json.dumps(found))
        """
    )
    assert ended.stderr == ""
    found: list[dict[str, float]] = json.loads(ended.stdout)
    return found
