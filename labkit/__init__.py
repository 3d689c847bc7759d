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
    "train": "labkit.training.train",
    "Run": "labkit.training.run",
    "compare": "labkit.training.compare",
    "Comparison": "labkit.training.compare",
    "step_through": "labkit.training.stepping",
    "History": "labkit.history.history",
    "Simulator": "labkit.engines.simulator",
    "Lockstep": "labkit.engines.lockstep",
    "Cluster": "labkit.engines.cluster",
    "DDP": "labkit.engines.distributed.data_parallel",
    "formulas": "labkit.cards.cards",
}
_MODULES = {"algorithms", "data", "check", "widgets", "errors", "exchange"}

__all__ = sorted([*_HOME, *_MODULES])

if TYPE_CHECKING:
    from labkit import (
        algorithms as algorithms,
    )
    from labkit import (
        check as check,
    )
    from labkit import (
        data as data,
    )
    from labkit import (
        errors as errors,
    )
    from labkit import (
        exchange as exchange,
    )
    from labkit import (
        widgets as widgets,
    )
    from labkit.cards.cards import formulas as formulas
    from labkit.cluster.connect import connect as connect
    from labkit.cluster.doctor import doctor as doctor
    from labkit.cluster.lab import Lab as Lab
    from labkit.costs.link import Link as Link
    from labkit.engines.cluster import Cluster as Cluster
    from labkit.engines.distributed.data_parallel import DDP as DDP
    from labkit.engines.lockstep import Lockstep as Lockstep
    from labkit.engines.simulator import Simulator as Simulator
    from labkit.history.history import History as History
    from labkit.tasks.schedule import Schedule as Schedule
    from labkit.tasks.schedule import schedule as schedule
    from labkit.tasks.split import Partition as Partition
    from labkit.tasks.split import split as split
    from labkit.tasks.sync import (
        ASP as ASP,
    )
    from labkit.tasks.sync import (
        BSP as BSP,
    )
    from labkit.tasks.sync import (
        SSP as SSP,
    )
    from labkit.tasks.sync import (
        Timeline as Timeline,
    )
    from labkit.tasks.sync import (
        synchronize as synchronize,
    )
    from labkit.training.compare import Comparison as Comparison
    from labkit.training.compare import compare as compare
    from labkit.training.run import Run as Run
    from labkit.training.stepping import step_through as step_through
    from labkit.training.train import train as train


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
