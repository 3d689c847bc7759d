"""What the failure of one item of a map means, in one sentence with its remedy."""

from __future__ import annotations

import importlib.util
import reprlib
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from distributed import KilledWorker

from labkit.cluster.remedies import with_remedy
from labkit.errors import LabkitError, TaskError, WorkerLost

_CALL_FILE = str(Path("labkit", "cluster", "shipping.py"))  # also as another machine spells it


class Failure(NamedTuple):
    """Why a job has no result; a fresh exception is raised from it each time the result is asked for."""

    kind: type[LabkitError]
    sentence: str
    cause: BaseException | None = None


def explain(error: BaseException, index: int, item: Any) -> Failure:
    """Why item number `index` failed: `error` is what Dask says of it, or what the user's function raised."""
    named = f"item {index} ({short(item)})"
    if isinstance(error, KilledWorker):
        times = error.allowed_failures + 1
        return Failure(
            WorkerLost,
            f"{named} ended {times} workers one after the other, most likely for want of memory or by a crash "
            "in compiled code: try it alone, or give the workers more memory.",
        )
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if module and (module in sys.modules or importlib.util.find_spec(module)):
        return Failure(
            TaskError,
            f"the workers have no module {module!r}, which this kernel has: install it there, or send its file "
            f'with lab.client.upload_file("{module}.py").',
            error,
        )
    place = f"worker {error.labkit_worker}" if hasattr(error, "labkit_worker") else "its worker"
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    sentence = with_remedy(f"{named} failed on {place} with {what}", str(error))
    return Failure(TaskError, sentence, error.with_traceback(_users_frames(error)))


def short(item: Any) -> str:
    """An item in one short line.

    >>> short("a" * 100)
    "'aaaaaaaaaaaa...aaaaaaaaaaaaa'"
    """
    return " ".join(reprlib.repr(item).split())


def _users_frames(error: BaseException) -> TracebackType | None:
    """The traceback from the user's function on: how Dask got there says nothing about the failure."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "__call__" and frame.tb_frame.f_code.co_filename.endswith(_CALL_FILE):
            return frame.tb_next
        frame = frame.tb_next
    return error.__traceback__
