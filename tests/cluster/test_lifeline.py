"""Nothing outlives its kernel, whatever it is doing; nothing that a task has started outlives its worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import labkit as lk
from labkit.cluster.lab import Lab
from labkit.cluster.local import local_cluster
from tests.cluster.kernels import gone, kernel

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Dask's own thread is all that ends a worker"),
]

KERNEL = """
    import ctypes, os, subprocess, sys, time
    from pathlib import Path
    import labkit as lk

    def tell(*pids):
        Path("{folder}", str(os.getpid())).write_text(" ".join(map(str, pids)))

    def keeps_the_interpreter(i):
        tell(subprocess.Popen(["sleep", "1000"]).pid)  # a process of its own
        ctypes.PyDLL(None).sleep(1000)  # no thread of Python gets its turn

    def forks(i):
        child = os.fork()
        if not child:
            ctypes.PyDLL(None).sleep(1000)
        tell(child)
        ctypes.CDLL(None).sleep(1000)

    def as_a_rank():
        keeps_the_interpreter(0)

    lab = lk.connect(workers=2)
    {work}
    input()
"""


def family(kernel: int, folder: Path) -> list[int]:
    """The kernel's processes, once its two workers are at work, with those that these have started."""
    deadline = time.monotonic() + 60
    while len(told := [it.read_text() for it in folder.iterdir()]) < 2 or not all(told):
        assert time.monotonic() < deadline, "the workers did not begin"
        time.sleep(0.05)
    started = [int(pid) for text in told for pid in text.split()]
    found = [child.pid for child in psutil.Process(kernel).children(recursive=True)]
    assert len(started) == 2 and set(started) <= set(found) and len(found) >= 6
    return found


@pytest.mark.parametrize(
    ("work", "by"),
    [
        ("job = lab.map(lambda i: (keeps_the_interpreter, forks)[i](i), range(2))", signal.SIGKILL),
        ("gang = lab.launch(as_a_rank)", signal.SIGTERM),
    ],
    ids=["tasks", "ranks"],
)
def test_whatever_a_kernels_processes_are_doing_they_end_with_it(tmp_path: Path, work: str, by: signal.Signals) -> None:
    with kernel(KERNEL.format(folder=tmp_path, work=work)) as notebook:
        found = family(notebook.process.pid, tmp_path)
        notebook.process.send_signal(by)
        notebook.process.wait(5)
        assert gone(found, timeout=10)


def test_a_template_that_still_imports_ends_with_its_kernel(tmp_path: Path) -> None:
    """Also when the kernel had asked it for a worker, which holds its pipe open."""
    (tmp_path / "slow.py").write_text("import time; time.sleep(1000)")
    program = """
        import multiprocessing, os, time
        from multiprocessing import forkserver
        multiprocessing.set_forkserver_preload(["labkit.cluster.lifeline", "slow"])
        process = multiprocessing.get_context("forkserver").Process(target=print)
        process.start()  # waits for ever for the server to answer
    """
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with kernel(f"import sys; sys.path[:] = {path.split(os.pathsep)!r}" + program.replace("\n        ", "\n")) as other:
        me, deadline = psutil.Process(other.process.pid), time.monotonic() + 30
        while not any("forkserver" in " ".join(it.cmdline()) for it in me.children()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(2)  # for the server to come to what takes it so long
        found = [it.pid for it in me.children(recursive=True)]
        other.process.kill()
        other.process.wait(5)
        assert gone(found, timeout=10)


def start_one(_: int) -> int:
    return subprocess.Popen(["sleep", "1000"]).pid


@pytest.mark.parametrize("way", ["killed", "closed"])
def test_what_a_task_has_started_ends_with_its_worker(way: str) -> None:
    with local_cluster(1, threads=1, memory=2 << 30) as cluster, lk.connect(cluster) as lab:
        (started,) = lab.map(start_one, [0]).result(timeout=60)
        assert psutil.pid_exists(started)
        if way == "killed":
            lab.kill(0)
            assert gone([started], timeout=5)
    assert gone([started], timeout=5)


def test_workers_lead_process_groups_of_their_own(lab: Lab) -> None:
    assert {os.getpgid(worker.pid) for worker in lab.workers} == {worker.pid for worker in lab.workers}
