"""A worker that dies is replaced by one forked from a process that has imported what it needs."""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

import labkit as lk
from labkit.cluster import local
from labkit.cluster.local import local_cluster
from tests.cluster.kernels import run

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are spawned: forking is not safe there")


def torch_is_there() -> bool:
    return "torch" in sys.modules


@linux
def test_a_worker_that_comes_back_is_forked_and_has_torch_at_once() -> None:
    with local_cluster(1, threads=1, memory=2 << 30) as cluster, lk.connect(cluster) as lab:
        (lost,) = lab.workers
        lab.kill(0)
        deadline = time.monotonic() + 30
        while not (back := lab.workers) or back[0].pid == lost.pid:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        parent = psutil.Process(back[0].pid).parent()
        assert parent is not None and "forkserver" in " ".join(parent.cmdline())
        assert lab.client.submit(torch_is_there).result(timeout=30)


def test_workers_whose_libraries_would_count_other_threads_are_spawned() -> None:
    assert local.start_method({"OMP_NUM_THREADS": "77"}) == "spawn"


@pytest.mark.parametrize(("main", "known"), [({"__file__": "mine.py"}, True), ({}, False)], ids=["script", "notebook"])
def test_the_template_imports_what_stands_at_the_top_of_a_script(
    monkeypatch: pytest.MonkeyPatch, main: dict[str, str], known: bool
) -> None:
    """A process that a script starts imports the script again; one of a notebook's does not."""
    import sklearn.datasets  # noqa: F401

    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(**main))  # type: ignore[arg-type]
    assert ("sklearn.datasets" in local._of_script()) is known


@linux
def test_where_memory_is_limited_all_workers_share_what_the_template_has_imported() -> None:
    """After a training kernel, template and two workers take 640 MiB; four imports of torch took 1,020."""
    ended = run(
        """
        import psutil, torch
        import labkit as lk

        lab = lk.connect(workers=2)
        me = psutil.Process()
        print({"forkserver" in " ".join(psutil.Process(it.pid).parent().cmdline()) for it in lab.workers})
        lk.train(lambda: torch.nn.Linear(64, 10), lk.data.load("digits"), peers=2, rounds=5, on=lab).result()
        print(sum(it.memory_full_info().pss for it in (me, *me.children(recursive=True))) >> 20)
        """,
        timeout=150,
        env={**os.environ, "MEM_LIMIT": "3G"},
    )
    assert ended.returncode == 0, ended.stderr
    forked, mib = ended.stdout.splitlines()
    assert forked == "{True}"
    assert int(mib) < 780
