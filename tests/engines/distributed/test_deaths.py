"""The notebook's kernel or the scheduler dies while models train: the others know within seconds, nobody is left."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import labkit as lk
from labkit.errors import LabClosed
from tests.cluster.kernels import Kernel, gone, kernel
from tests.cluster.ranks import Clock, works
from tests.engines.experiments import SGD, mlp

pytestmark = [pytest.mark.slow, pytest.mark.alone]

HOST = """
    from distributed import LocalCluster
    if __name__ == "__main__":
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
        print(cluster.scheduler_address)
        input()
"""

NOTEBOOK = """
    import time, torch
    from functools import partial
    import labkit as lk

    lab = lk.connect({target})
    print(*(worker.pid for worker in lab.workers))
    model = torch.nn.Linear(64, 10)
    run = lk.train(model, lk.data.load("digits"), peers=2, rounds=1_000_000, on=lab,
                   optimizer=partial(torch.optim.SGD, lr=0.1))
    while not run.history.rows:
        assert not run.done, run.error
        time.sleep(0.01)
    print("training")
    run.result()
"""


@pytest.fixture(scope="module")
def host() -> Iterator[tuple[Kernel, str]]:
    """A cluster of two workers in a process of its own, and its address."""
    with kernel(HOST) as host:
        yield host, host.hear()


def killed_while_it_trains(notebook: Kernel) -> list[int]:
    """Kill a kernel when its training is under way; the processes of its workers."""
    workers = [int(pid) for pid in notebook.hear().split()]
    assert notebook.hear() == "training"
    notebook.process.kill()
    return workers


def test_a_kernel_that_is_killed_while_it_trains_leaves_no_worker() -> None:
    with kernel(NOTEBOOK.format(target="workers=2")) as notebook:
        workers = killed_while_it_trains(notebook)
        assert len(workers) == 2
        assert gone(workers, timeout=10)


def test_a_foreign_clusters_workers_are_free_soon_after_the_kernel_that_trained_on_them_was_killed(
    host: tuple[Kernel, str],
) -> None:
    _, address = host
    with kernel(NOTEBOOK.format(target=repr(address))) as notebook, lk.connect(address) as lab:
        workers = killed_while_it_trains(notebook)
        with Clock(15):
            assert works(lab)
        assert {worker.pid for worker in lab.workers} == set(workers)  # none had to be ended


def test_a_scheduler_that_dies_ends_the_training_in_one_sentence(host: tuple[Kernel, str]) -> None:
    cluster, address = host
    with lk.connect(address) as lab:
        pids = [worker.pid for worker in lab.workers]
        run = lk.train(mlp, lk.data.load("digits"), peers=2, rounds=1_000_000, on=lab, optimizer=SGD)
        while not run.history.rows and not run.done:
            time.sleep(0.01)
        cluster.process.kill()
        with Clock(10), pytest.raises(LabClosed, match=r"its scheduler is gone.*lk\.connect\(\)"):
            run.result(timeout=30)
        assert gone(pids, timeout=10)
