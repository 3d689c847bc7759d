"""Template: a process that has imported torch and distributed, from which workers are forked in place of lost ones.

Such a worker trains within half a second, instead of the five seconds that importing all it needs takes, which is what
a run waits for whose worker has died. multiprocessing's fork server is single-threaded, touches no GPU, ends when the
kernel and its workers have, and is asked for a process the way a spawned one is made.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import random
import sys
from collections.abc import Mapping

import dask.config
from distributed.utils import get_mp_context

METHOD = "distributed.worker.multiprocessing-method"
# torch.optim imports the compiler when the first optimiser is made; and ranks of a training import labkit's engine
_IMPORTED = (
    "torch",
    "torch._dynamo",
    "torch.distributed.nn",
    "distributed.nanny",
    "labkit.engines.distributed.train_rank",
    __name__,
)
_OF_SCRIPTS = ("sklearn.datasets", "matplotlib.pyplot", "pandas", "torchvision")
_made_with: dict[str, str] | None = None  # the variables of the running template that libraries read as they load


def method(variables: Mapping[str, str]) -> str:
    """How a worker with these variables is started: "forkserver" where the template was made with them, else "spawn".

    Numerical libraries count their threads when they are loaded, which the template has done.
    """
    return "forkserver" if _made_with == variables else "spawn"


def make(variables: Mapping[str, str]) -> None:
    """Start the template, which then imports for seconds in the background; harmless where there is one.

    It begins while the first workers import the same, so that it takes nothing from a run that comes later.
    """
    global _made_with
    if sys.platform != "linux" or _made_with is not None:
        return
    with dask.config.set({METHOD: "forkserver"}):
        get_mp_context()  # names the modules that Dask wishes for, and only once
    multiprocessing.set_forkserver_preload([*_IMPORTED, *_of_script()])
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    _made_with = dict(variables)


def _of_script() -> list[str]:
    """What takes long to import and stands at the top of a script: every process that it starts imports that again."""
    script = hasattr(sys.modules["__main__"], "__file__")
    return [name for name in _OF_SCRIPTS if script and name in sys.modules]


def _differ() -> None:
    """Give a new worker random numbers of its own: numpy's state was copied with the template."""
    if os.getppid() == _template and "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
        random.seed()


_template = os.getpid()
if multiprocessing.forkserver.get_inherited_fds() is None and multiprocessing.parent_process() is None:
    os.register_at_fork(after_in_child=_differ)
