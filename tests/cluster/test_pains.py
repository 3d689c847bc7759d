"""What users of such tools suffer from: each situation is produced, and ends in one clear sentence, or is gone."""

from __future__ import annotations

import gc
import importlib
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed.comm.tcp import TCP
from torch import nn

import labkit as lk
from labkit.cluster.lab import Lab
from labkit.cluster.local import open_local
from labkit.cluster.workers import WorkerRequest
from labkit.errors import GangError, LabkitError, TaskError
from tests.cluster.stock import stock_lab
from tests.engines.experiments import SGD

DIGITS = lk.data.load("digits")
PAINS = {
    "CUDA initialised before a fork": [
        "cluster.test_pains:test_no_worker_is_a_fork_of_the_kernel_and_what_it_has_set_up",
        "cluster.test_pains:test_torchs_and_pythons_own_words_come_with_a_remedy",
    ],
    "a class of the notebook not found on the worker": [
        "cluster.test_pains:test_a_model_class_of_the_notebook_trains_on_workers",
        "cluster.test_pains:test_a_model_class_of_a_module_beside_the_notebook_trains_on_workers",
        "cluster.test_shipping:test_a_function_of_the_users_own_module_travels_as_it_is_now",
    ],
    "daemonic processes are not allowed to have children": [
        "cluster.test_workers:test_a_task_may_have_child_processes",
        "cluster.test_pains:test_on_a_stock_worker_a_dataloaders_children_are_refused_with_the_remedy",
    ],
    "one rank dies or runs out of batches and the rest hang": [
        "cluster.gang.test_gang_deaths:test_a_killed_rank_is_named_within_a_second_and_its_siblings_are_free",
        "cluster.gang.test_gang_failures:test_a_rank_that_runs_out_of_batches_ends_the_others_in_one_sentence",
        "engines.test_epochs:test_uneven_shards_train_as_under_torchs_join",
    ],
    "port in use when a cell is run again": [
        "cluster.test_pains:test_usual_ports_that_are_taken_disturb_nobody",
        "cluster.test_pains:test_a_port_that_a_function_asks_for_twice_is_answered_with_the_remedy",
    ],
    "prints and progress on workers never seen": [
        "cluster.gang.test_gang:test_prints_of_the_ranks_are_shown_with_their_rank",
        "cluster.test_job:test_prints_arrive_with_the_workers_name",
        "cluster.test_pains_of_notebooks:test_what_a_model_prints_on_a_worker_is_seen_in_the_notebook",
    ],
    "widgets frozen while a cell runs, or written from the wrong thread": [
        "cluster.test_pains_of_notebooks:test_widgets_move_while_a_cell_waits_and_only_from_the_kernels_own_thread",
        "cluster.test_lab:test_a_job_fills_its_bar_while_the_kernel_is_idle",
    ],
    "GPU memory kept after an error": [
        "cluster.test_pains:test_nothing_that_failed_is_kept_on_a_worker",
        "cluster.test_pains:test_an_error_of_a_simulation_that_the_notebook_keeps_keeps_no_tensors",
    ],
    "worker lacks a package or has another version": [
        "cluster.test_remote:test_workers_with_another_version_are_named",
        "cluster.test_remote:test_a_worker_without_labkit_is_named",
        "cluster.test_shipping:test_a_module_that_the_workers_lack_is_named",
    ],
    "two ranks on one GPU": [
        "engines.distributed.test_devices:test_two_ranks_on_one_gpu_are_refused_in_one_sentence",
        "cluster.gang.test_diagnosis:test_nccl_is_used_where_every_rank_has_a_gpu_of_its_own",
        "cluster.test_workers:test_each_gpu_worker_sees_its_own_gpu",
    ],
    "a large array shipped with every task": [
        "cluster.test_pains:test_a_large_array_in_a_function_is_sent_once_whatever_the_number_of_items",
        "cluster.test_shipping:test_a_big_object_in_many_items_travels_once",
    ],
}


@pytest.mark.parametrize("pain", PAINS)
def test_each_pain_has_its_tests(pain: str) -> None:
    for place in PAINS[pain]:
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(f"tests.{module}"), name))


# -- CUDA initialised before a fork


def test_no_worker_is_a_fork_of_the_kernel_and_what_it_has_set_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what torch remembers once CUDA is initialised, set in the kernel, is not set in a new worker."""
    monkeypatch.setattr(torch.cuda, "_initialized", True)
    fresh = lab.workers[0]
    lab.restart_workers([fresh.address])
    lab.client.wait_for_workers(2, timeout=30)

    def state() -> tuple[bool, bool]:
        import torch

        return torch.cuda._initialized, torch.cuda._is_in_bad_fork()

    assert set(lab.client.run(state).values()) == {(False, False)}


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("Cannot re-initialize CUDA in forked subprocess.", 'multiprocessing_context="spawn"'),
        ("CUDA out of memory. Tried to allocate 2 GiB.", "use smaller batches"),
        ("[Errno 98] Address already in use", "give 0 for the port"),
    ],
)
def test_torchs_and_pythons_own_words_come_with_a_remedy(lab: Lab, words: str, remedy: str) -> None:
    def fail(words: str) -> None:
        raise RuntimeError(f"Caught in a DataLoader's process:\n{words}")

    for attempt, error in ((lambda: lab.map(fail, [words]), TaskError), (lambda: lab.launch(fail, words), GangError)):
        with pytest.raises(error, match=remedy):
            attempt().result()


# -- a class of the notebook

CLASS = """
class Mine(torch.nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
"""


def trained(lab: Lab, model: Any) -> lk.History:
    return lk.train(model, DIGITS, peers=2, rounds=2, optimizer=SGD, on=lab).result(timeout=60)


def test_a_model_class_of_the_notebook_trains_on_workers(lab: Lab) -> None:
    cell = {"__name__": "__main__", "torch": torch}
    exec(CLASS, cell)
    assert cell["Mine"].__module__ == "__main__"
    history = trained(lab, cell["Mine"])
    assert type(history.models[0]) is cell["Mine"]


def test_a_model_class_of_a_module_beside_the_notebook_trains_on_workers(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lessons_models.py"
    file.write_text(f"import torch\n{CLASS}")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("lessons_models")
    try:
        assert type(trained(lab, module.Mine).models[0]) is module.Mine
    finally:
        del sys.modules["lessons_models"]


# -- daemonic processes


@pytest.fixture(scope="module")
def stock() -> Iterator[Lab]:
    """A worker as Dask starts them, which is daemonic."""
    with stock_lab(1) as lab:
        yield lab


def test_on_a_stock_worker_a_dataloaders_children_are_refused_with_the_remedy(stock: Lab) -> None:
    def load(_: int = 0) -> list[int]:
        from torch.utils.data import DataLoader

        return [int(batch) for batch in DataLoader(range(2), batch_size=None, num_workers=1)]

    remedy = r"daemonic processes.*start its worker with lk\.connect\(\).*num_workers=0\.$"
    for attempt, error in ((lambda: stock.map(load, [0]), TaskError), (lambda: stock.launch(load), GangError)):
        with pytest.raises(error, match=remedy):
            attempt().result()


# -- ports


def test_usual_ports_that_are_taken_disturb_nobody() -> None:
    """Dask's 8786 and 8787 and torch's 29500 belong to somebody else: labs and ranks want none of them, twice."""
    with ExitStack() as stack:
        for port in (8786, 8787, 29500):
            taken = stack.enter_context(socket.socket())
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):  # then it is taken indeed
                taken.bind(("127.0.0.1", port))
                taken.listen()
        for _ in range(2):  # as one cell, run twice
            with open_local(WorkerRequest(workers=1)) as lab:
                assert lab.launch(torch.distributed.get_world_size).result() == [1]


def test_a_port_that_a_function_asks_for_twice_is_answered_with_the_remedy(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:

        def serve(port: int) -> None:
            import socket

            socket.create_server(("127.0.0.1", port))

        with pytest.raises(TaskError, match=r"Address already in use.*: give 0 for the port"):
            lab.map(serve, [taken.getsockname()[1]]).result()


# -- memory kept after an error


def test_nothing_that_failed_is_kept_on_a_worker(lab: Lab) -> None:
    def fail(*_: int) -> None:
        import builtins
        import weakref

        import torch

        activations = torch.zeros(1000)
        builtins.seen = weakref.ref(activations)  # type: ignore[attr-defined]
        raise ValueError("after the forward pass")

    def kept() -> bool:
        import builtins

        return getattr(builtins, "seen", lambda: None)() is not None

    errors: list[LabkitError] = []  # as a notebook keeps them
    for attempt in (lambda: lab.launch(fail), lambda: lab.map(fail, [0, 1])):
        with pytest.raises(LabkitError, match="after the forward pass") as caught:
            attempt().result()
        errors.append(caught.value)
        deadline = time.monotonic() + 5
        while any(lab.client.run(kept).values()):
            assert time.monotonic() < deadline, "a worker keeps a tensor of what failed"


class Failing(nn.Linear):
    """A model that fails once it is trained, with a tensor in its hands."""

    seen: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        Failing.seen = weakref.ref(y)
        if threading.current_thread() is not threading.main_thread():  # in the run itself, and not as it is tried
            raise ValueError("after the forward pass")
        return y


def test_an_error_of_a_simulation_that_the_notebook_keeps_keeps_no_tensors() -> None:
    run = lk.train(lambda: Failing(64, 10), DIGITS, peers=2, rounds=2, optimizer=SGD)
    with pytest.raises(ValueError, match="after the forward pass") as caught:
        run.result()
    gc.collect()
    assert Failing.seen() is None
    assert "forward" in [entry.name for entry in caught.traceback]  # where it failed is still told


# -- a large array shipped with every task


def test_a_large_array_in_a_function_is_sent_once_whatever_the_number_of_items(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that client and scheduler write, which both live in this process, is counted."""
    array = np.random.default_rng(0).random(6_250_000)  # 50 MB that cannot be compressed
    written = []
    write = TCP.write

    async def counted(self: TCP, *args: Any, **kwargs: Any) -> Any:
        written.append(await write(self, *args, **kwargs))
        return written[-1]

    monkeypatch.setattr(TCP, "write", counted)
    assert lab.map(lambda i: float(array[i]), range(40)).result() == array[:40].tolist()
    assert array.nbytes < sum(written) < 3.5 * array.nbytes  # to the scheduler, and from there to each worker
