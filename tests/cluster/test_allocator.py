"""The allocator's settings save the page faults that Dask's nanny causes."""

from __future__ import annotations

import os
import platform

import pytest

from labkit.cluster.lab import Lab
from labkit.cluster.preparation import keep_memory
from tests.cluster.kernels import run

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")

STEPS = """
    import resource, sys
    import numpy
    from labkit.cluster.preparation import keep_memory

    if sys.argv[1:] or {keep}:
        assert keep_memory()

    def faults(steps):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(steps):
            a = numpy.ones(500_000)         # 4 MB, as a layer's activations
            b = a * 2
            del a, b
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults(5)
    print(faults(50))
"""


@glibc
def test_a_training_step_finds_its_memory_again() -> None:
    nanny = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}  # what Dask's nanny sets
    stock, kept = (int(run(STEPS.format(keep=keep), env=nanny).stdout) for keep in (False, True))
    assert stock > 50_000  # 50 steps × 2 arrays × 977 pages
    assert kept < stock / 100


@glibc
def test_workers_have_these_settings(lab: Lab) -> None:
    def faults() -> int:
        import resource

        import numpy

        for _ in range(5):
            numpy.ones(500_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(50):
            numpy.ones(500_000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert lab.client.submit(faults, pure=False).result() < 5_000


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda *_: pytest.fail("no library may be touched"))
    assert keep_memory() is False


def test_a_map_straight_after_connecting_may_import_any_part_of_torch() -> None:
    """The background import of torch is still going on then; importing a part of it beside that aborted workers."""
    ended = run(
        """
        import labkit as lk

        def part(item):
            import torch.distributed
            return item + torch.distributed.is_available()

        lab = lk.connect(workers=2)
        print(lab.map(part, range(4)).result(timeout=60))
        """
    )
    assert ended.stdout.strip() == "[1, 2, 3, 4]", ended.stderr
