"""What labkit does without what only Unix has, as far as that can be shown on another system.

In a process of its own everything that Windows lacks is taken out of Python, once the packages that labkit builds on,
which have their own ways there, are loaded. Then labkit is imported, and what needs no workers is done.
"""

from __future__ import annotations

import pytest

from tests.cluster.kernels import run

PROGRAM = """
import asyncio, multiprocessing.popen_spawn_posix, os, signal, subprocess, sys, tempfile
import cryptography.x509, distributed, distributed.deploy.spec, IPython, ipywidgets, matplotlib.pyplot, networkx
import numpy, platformdirs, pooch, psutil, sklearn.datasets, torch, torch._dynamo
import torch.distributed.nn, torch.nn.parallel, torch.optim

for name in "fork register_at_fork setpgid killpg geteuid getuid memfd_create sched_getaffinity O_ASYNC".split():
    delattr(os, name)
for name in "SIGKILL SIGSTOP SIGCONT SIGALRM SIGUSR1 SIGHUP setitimer ITIMER_REAL".split():
    delattr(signal, name)
for name in "fcntl resource pwd grp termios".split():
    sys.modules[name] = None
sys.platform = "win32"

import labkit as lk
for name in lk.__all__:
    getattr(lk, name)

def linear():
    return torch.nn.Linear(64, 10)

digits = lk.data.load("digits")
for on in (lk.Simulator(), lk.Lockstep()):
    assert len(lk.train(linear, digits, peers=2, rounds=3, on=on).result(60).rows) == 3
part = lk.split(10, parts=4)
assert lk.schedule([1, 2, 3], workers=2, policy="lpt").makespan == 3
lk.synchronize([[1, 2], [2, 1]], policy=lk.SSP(2))
lk.costs.amdahl(0.9, 8)
for widget in (lk.widgets.split(), lk.widgets.schedule(), lk.widgets.synchronize()):
    widget._repr_mimebundle_()

from labkit.cluster.local import start_method, _start_template
from labkit.cluster.machine_checks import EXAMINATIONS
_start_template({})
assert start_method({}) == "spawn", "there is no template to fork from"
for examine in EXAMINATIONS.values():
    examine()
print("done")
"""


@pytest.mark.slow
@pytest.mark.paired
def test_without_unix_everything_but_workers_is_there() -> None:
    done = run(PROGRAM, timeout=150)
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr[-3000:]
