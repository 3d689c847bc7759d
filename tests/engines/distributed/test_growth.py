"""However many trainings a kernel starts, neither it nor its workers grow."""

from __future__ import annotations

import gc

import psutil
import pytest

import labkit as lk
from labkit.cluster.lab import Lab
from tests.engines.experiments import result

RUNS = 40
FEW = 15 * RUNS  # objects: Dask's own logs of 20 entries breathe; one message that is kept is 20 and more


def objects() -> int:
    """How many containers Python knows of in this process."""
    gc.collect()
    return len(gc.get_objects())


def held(lab: Lab) -> list[int]:
    """Objects of the kernel, with the scheduler in it, and of each worker."""
    return [objects(), *(found for _, found in sorted(lab.client.run(objects).items()))]


@pytest.mark.slow
def test_forty_trainings_leave_nothing_in_kernel_scheduler_and_workers(lab: Lab) -> None:
    def trainings(runs: int) -> None:
        for _ in range(runs):
            result(lab, lk.algorithms.LocalSGD(2), rounds=5)

    trainings(25)  # until Dask's logs are full
    before, memory = held(lab), psutil.Process().memory_info().rss
    trainings(RUNS)
    grown = [after - earlier for earlier, after in zip(before, held(lab), strict=True)]
    assert all(each < FEW for each in grown), grown
    assert psutil.Process().memory_info().rss - memory < 4 << 20, "it was 0.2 MB for each training"
