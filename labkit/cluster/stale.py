"""Stale: clusters of this user that nobody started who still lives, and their end.

A lab ends with its kernel; but schedulers and workers that somebody has started over SSH or in a terminal go on when
their parent has gone, and so do processes of older programs.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import psutil

from labkit.cluster import deadlines

_ROLES = ("scheduler", "worker", "spec", "cuda")
_OF_MULTIPROCESSING = ("multiprocessing.forkserver", "multiprocessing.spawn")
_OURS = ("labkit", "distributed")  # of all that multiprocessing starts; what is preloaded stands in the command
_LIVE = ("python", "jupyter")  # as the first process of a container, it may well be who started them


def stale() -> list[psutil.Process]:
    """Processes of Dask, and of multiprocessing for it, that are this user's and nobody's child, with their children.

    Somebody may have started them so on purpose: look before you end them.
    """
    mine, found = psutil.Process(), []
    family = {mine, *mine.parents(), *mine.children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended meanwhile, or belongs to somebody else
            if process in family or process.username() != mine.username() or not _is_cluster(process.cmdline()):
                continue
            if _is_nobodys(process.parent()):
                found += [process, *process.children(recursive=True)]
    return list(dict.fromkeys(found))


def _is_cluster(command: list[str]) -> bool:
    words = [word.rpartition("/")[2] for word in command]
    if any(word in {f"dask-{role}" for role in _ROLES} for word in words[:2]):
        return True
    for word, following in pairwise(words):
        if word in ("dask", "distributed.cli") and following in _ROLES:
            return True
        if word == "-m" and following in {f"distributed.cli.dask_{role}" for role in _ROLES}:
            return True
    after = " ".join(command[1:])  # the interpreter may lie in a folder of any name
    return any(it in after for it in _OF_MULTIPROCESSING) and any(it in after for it in _OURS)


def _is_nobodys(parent: psutil.Process | None) -> bool:
    if parent is None or parent.name() == "systemd":
        return True
    return parent.pid == 1 and not any(it in parent.name().lower() for it in _LIVE)


def end(processes: list[psutil.Process]) -> None:
    """Terminate them, and kill what is still there a moment later."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs(processes, timeout=deadlines.GRACE)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=deadlines.EXIT)
