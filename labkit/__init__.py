"""labkit: see how many machines compute together, and how many models learn together.

`import labkit as lk` costs next to nothing: every public name is imported when it is first used (PEP 562), so that
neither torch, Dask nor matplotlib is loaded before it is needed.

>>> import labkit as lk
>>> lk.split(5, parts=2).sizes
(3, 2)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> module that defines it; a name equal to its module's last part is the module itself
_HOME = {
    "split": "labkit.tasks.split",
    "Partition": "labkit.tasks.split",
    "schedule": "labkit.tasks.schedule",
    "Schedule": "labkit.tasks.schedule",
    "synchronize": "labkit.tasks.sync",
    "Timeline": "labkit.tasks.sync",
    "BSP": "labkit.tasks.sync",
    "SSP": "labkit.tasks.sync",
    "ASP": "labkit.tasks.sync",
    "Link": "labkit.costs.link",
    "connect": "labkit.cluster.connect",
    "Lab": "labkit.cluster.lab",
    "doctor": "labkit.cluster.doctor",
    "train": "labkit.training",
    "Run": "labkit.run",
    "History": "labkit.history",
    "Simulator": "labkit.engines.simulator",
    "Lockstep": "labkit.engines.lockstep",
    "formulas": "labkit.cards",
}
_MODULES = {"algorithms", "data", "check", "widgets", "errors", "exchange"}

__all__ = sorted([*_HOME, *_MODULES])

if TYPE_CHECKING:
    from labkit import algorithms, check, data, errors, exchange, widgets
    from labkit.cards import formulas
    from labkit.cluster.connect import connect
    from labkit.cluster.doctor import doctor
    from labkit.cluster.lab import Lab
    from labkit.costs.link import Link
    from labkit.engines.lockstep import Lockstep
    from labkit.engines.simulator import Simulator
    from labkit.history import History
    from labkit.run import Run
    from labkit.tasks.schedule import Schedule, schedule
    from labkit.tasks.split import Partition, split
    from labkit.tasks.sync import ASP, BSP, SSP, Timeline, synchronize
    from labkit.training import train


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = import_module(f"labkit.{name}")
    else:
        raise AttributeError(f"labkit has no {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
