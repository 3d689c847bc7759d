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

_NAMES = {  # module: the public names it defines
    "tasks.split": ("split", "Partition"),
    "tasks.schedule": ("schedule", "Schedule"),
    "tasks.sync": ("synchronize", "Timeline", "BSP", "SSP", "ASP"),
    "costs.link": ("Link",),
    "cluster.connect": ("connect",),
    "cluster.lab": ("Lab",),
    "cluster.doctor": ("doctor",),
    "training.train": ("train",),
    "training.run": ("Run",),
    "training.joining": ("join",),
    "training.inviting": ("invite",),
    "training.compare": ("compare",),
    "training.comparison": ("Comparison",),
    "training.sweep": ("sweep",),
    "training.stepping": ("step_through",),
    "history.history": ("History",),
    "engines.simulator": ("Simulator",),
    "engines.lockstep": ("Lockstep",),
    "engines.cluster": ("Cluster",),
    "engines.distributed.data_parallel": ("DDP",),
    "cards.cards": ("formulas",),
    "cards.glossary": ("glossary",),
    "widgets.prediction": ("predict",),
    "widgets.calibration": ("predictions",),
    "widgets.lesson": ("go_on", "source"),
    "widgets.quiz": ("quiz",),
    "widgets.language": ("language",),
}
_HOME = {name: f"labkit.{module}" for module, names in _NAMES.items() for name in names}
_MODULES = ("algorithms", "check", "costs", "data", "errors", "exchange", "models", "widgets")

__all__ = sorted([*_HOME, *_MODULES])

if TYPE_CHECKING:  # the same names for whoever reads types
    from labkit import (
        algorithms as algorithms,
        check as check,
        costs as costs,
        data as data,
        errors as errors,
        exchange as exchange,
        models as models,
        widgets as widgets,
    )
    from labkit.cards.cards import formulas as formulas
    from labkit.cards.glossary import glossary as glossary
    from labkit.cluster.connect import connect as connect
    from labkit.cluster.doctor import doctor as doctor
    from labkit.cluster.lab import Lab as Lab
    from labkit.costs.link import Link as Link
    from labkit.engines.cluster import Cluster as Cluster
    from labkit.engines.distributed.data_parallel import DDP as DDP
    from labkit.engines.lockstep import Lockstep as Lockstep
    from labkit.engines.simulator import Simulator as Simulator
    from labkit.history.history import History as History
    from labkit.tasks.schedule import Schedule as Schedule, schedule as schedule
    from labkit.tasks.split import Partition as Partition, split as split
    from labkit.tasks.sync import ASP as ASP, BSP as BSP, SSP as SSP, Timeline as Timeline, synchronize as synchronize
    from labkit.training.compare import compare as compare
    from labkit.training.comparison import Comparison as Comparison
    from labkit.training.inviting import invite as invite
    from labkit.training.joining import join as join
    from labkit.training.run import Run as Run
    from labkit.training.stepping import step_through as step_through
    from labkit.training.sweep import sweep as sweep
    from labkit.training.train import train as train
    from labkit.widgets.calibration import predictions as predictions
    from labkit.widgets.language import language as language
    from labkit.widgets.lesson import go_on as go_on, source as source
    from labkit.widgets.prediction import predict as predict
    from labkit.widgets.quiz import quiz as quiz


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
    return __all__
