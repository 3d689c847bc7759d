"""Lifeline: what this kernel starts ends with it, whatever it is doing: holding the GIL, stuck in C, still importing.

Dask ends a worker by a thread of its own that reads from a pipe which the kernel holds open, but a thread needs the GIL
to act. Here the system itself kills the worker and all processes of its group, which are those that its tasks have
started, as soon as the last end for writing of that pipe is closed: Linux sends whatever signal a reader has asked for.
Elsewhere Dask's thread is all there is.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys
from contextlib import suppress
from typing import Any

from distributed import Worker

from labkit.cluster import deadlines


class LocalWorker(Worker):
    """A worker that leads a process group of its own, and ends with the kernel that has started it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # its parent, be it spawned or forked from the template, is the kernel
        parent = multiprocessing.parent_process()
        if sys.platform == "linux" and parent is not None:
            os.setpgid(0, 0)
            kill_at_end_of(parent.sentinel, -os.getpid())
        super().__init__(*args, **kwargs)


def end_group(leader: int | None) -> None:
    """Kill what is left of the process group of a worker, which is gone."""
    if leader is not None and hasattr(os, "killpg"):  # Windows has none
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def kill_at_end_of(pipe: int, owner: int) -> None:
    """Have the system kill `owner`, a process or minus a group, when nobody can write into this pipe any more."""
    import fcntl  # which Windows lacks

    fcntl.fcntl(pipe, fcntl.F_SETOWN, owner)
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    watch = select.poll()
    watch.register(pipe, 0)
    if watch.poll(0):  # it has ended before
        os.kill(os.getpid(), signal.SIGKILL)


def _watch_parent() -> None:
    """Let multiprocessing's fork server end with its parent, which it notices by itself when it has imported all.

    Not even then if the kernel died while a worker was asked for: the request, which the server has not read, holds the
    pipe open. A timer needs no thread, of which a process that is going to be forked must have none.
    """
    parent = os.getppid()

    def look(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(0)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, deadlines.PARENT_POLL, deadlines.PARENT_POLL)  # a fork does not inherit it
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGALRM, signal.SIG_DFL))


if "multiprocessing.forkserver" in " ".join(sys.orig_argv) and multiprocessing.parent_process() is None:
    _watch_parent()
