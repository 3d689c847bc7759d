"""Errors: every way labkit fails, as one tree; each message is one sentence with the cause and the remedy.

LabkitError
├── PartitionError (ValueError)     a split that cannot be made, or loses or repeats an item
├── ScheduleError (ValueError)      costs, speeds or dependencies that no schedule can honour
├── DataError (ValueError)          a dataset that is unknown, damaged, or too small for its peers
├── ModelError (ValueError)         a model, optimiser or loss that an engine cannot train
├── SettingError (ValueError)       an argument outside its range
├── ExchangeError                   peers whose messages do not fit together
├── DivergenceError                 a loss that became NaN or infinite
├── ClusterError
│   ├── ConnectError                no cluster answers at that address
│   ├── LabClosed                   the cluster was closed, or its scheduler is gone
│   ├── WorkerLost                  a worker died while it held work
│   ├── GangError                   the ranks could not all be started, or one of them failed
│   └── TaskError                   one item of a map failed on its worker
├── Stopped                         the result of something that was cancelled
├── MissingPackage (ImportError)    an optional package is not installed
└── CheckFailed (AssertionError)    an exercise whose answer is not right yet
"""

from __future__ import annotations

import traceback

__all__ = [
    "CheckFailed",
    "ClusterError",
    "ConnectError",
    "DataError",
    "DivergenceError",
    "ExchangeError",
    "GangError",
    "LabClosed",
    "LabkitError",
    "MissingPackage",
    "ModelError",
    "PartitionError",
    "ScheduleError",
    "SettingError",
    "Stopped",
    "TaskError",
    "WorkerLost",
]


def __dir__() -> list[str]:
    return __all__


class LabkitError(Exception):
    """The root of all errors that labkit raises on purpose."""


class PartitionError(LabkitError, ValueError):
    """A split that cannot be made, or that loses or repeats an item."""


class ScheduleError(LabkitError, ValueError):
    """Costs, speeds or dependencies that no schedule can honour."""


class DataError(LabkitError, ValueError):
    """A dataset that is unknown, damaged, or too small for its peers."""


class ModelError(LabkitError, ValueError):
    """A model, optimiser or loss that an engine cannot train."""


class SettingError(LabkitError, ValueError):
    """An argument outside its range."""


class ExchangeError(LabkitError):
    """Peers whose messages do not fit together."""


class DivergenceError(LabkitError):
    """A loss that became NaN or infinite."""


class ClusterError(LabkitError):
    """Something on the cluster went wrong."""


class ConnectError(ClusterError):
    """No cluster answers at that address."""


class LabClosed(ClusterError):
    """The cluster was closed, or its scheduler is gone."""


class WorkerLost(ClusterError):
    """A worker died while it held work."""


class GangError(ClusterError):
    """The ranks could not all be started, or one of them failed: the one on `worker`."""

    worker: str | None = None


class TaskError(ClusterError):
    """One item of a map failed on its worker."""


class Stopped(LabkitError):
    """The result was asked of something that was cancelled."""


class MissingPackage(LabkitError, ImportError):
    """An optional package is not installed."""


class CheckFailed(LabkitError, AssertionError):
    """An exercise whose answer is not right yet: `points` of it are right, `of` all.

    A notebook shows its card (the sentence, where it has none) instead of the lines that led to it: they might hold the
    answer.
    """

    card: str = ""
    points: float = 0.0
    of: float = 1.0

    def _render_traceback_(self) -> list[str]:
        return [self.card or f"✗ {self}", *getattr(self, "__notes__", ())]


def let_go(error: BaseException) -> None:
    """Forget the local variables of all frames that led to an error and to its causes; the traceback reads as before.

    Whoever keeps an error, as notebooks do with the last one, would else keep the models, batches and activations of
    those frames, and the GPU memory that they lie in. Frames that still run are left alone.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
