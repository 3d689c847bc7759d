"""Settings: all that can be asked of a training, written once; and what a run was asked, as plain data."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, is_dataclass
from functools import cache, wraps
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn

from labkit.algorithms import Algorithm
from labkit.cluster.lab import Lab
from labkit.data import Dataset, Sharding
from labkit.engines.experiment import Engine, Experiment, Loss, Metric, OptimizerFactory, Schedule
from labkit.history.history import History
from labkit.tasks.split import Partition

Model = nn.Module | Callable[[], nn.Module]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Settings:
    """The parameters of `labkit.train`, which says what each means."""

    model: Model | Sequence[Model]
    dataset: Dataset
    algorithm: Algorithm | Sequence[Algorithm] | None = None
    _: KW_ONLY
    peers: int | None = None
    rounds: int | None = None
    batch_size: int = 32
    seed: int = 0
    on: Lab | Engine | None = None
    optimizer: OptimizerFactory | Sequence[OptimizerFactory] | None = None
    loss: Loss = nn.functional.cross_entropy
    shards: Sharding | Partition | None = None
    public: Dataset | Tensor | None = None
    evaluate_every: int | None = None
    schedule: Schedule | None = None
    precision: str | None = None
    clip: float | None = None
    epochs: int | None = None
    metrics: Mapping[str, Metric] | None = None
    until: Callable[[History], bool] | None = None
    keep: str | None = None
    memory: bool = False

    @staticmethod
    def signature(called: Callable[..., Any], without: Sequence[str] = ()) -> inspect.Signature:
        """The parameters of a function, its last one (`settings` or `**settings`) replaced by the settings."""
        own = inspect.signature(called)
        mine = list(own.parameters.values())[:-1]
        given = [it for name, it in inspect.signature(Settings).parameters.items() if name not in without]
        if any(it.kind is it.KEYWORD_ONLY for it in mine):
            given = [it.replace(kind=it.KEYWORD_ONLY) for it in given]
        return own.replace(parameters=mine + given)


def _spelt_by(settings: Callable[P, Settings]) -> Callable[[Callable[[Settings], T]], Callable[P, T]]:
    """What makes of a function of Settings one that takes their parameters, shows them, and names itself in errors."""

    def decorate(function: Callable[[Settings], T]) -> Callable[P, T]:
        signature = Settings.signature(function)

        @wraps(function)
        def call(*args: P.args, **given: P.kwargs) -> T:
            try:
                signature.bind(*args, **given)
            except TypeError as error:
                raise TypeError(f"{function.__name__}(): {error}") from None
            return function(settings(*args, **given))

        call.__signature__ = signature  # type: ignore[attr-defined]  # what Shift+Tab shows
        return call

    return decorate


takes_settings = _spelt_by(Settings)  # a function of Settings becomes one of what these are made of


# -- a run's settings as plain data


def as_data(engine: Engine, experiment: Experiment) -> dict[str, Any]:
    """What decides the run's result, as numbers, words, lists and dicts; one thing for all peers, or a list for each.

    Models, losses and schedules are functions, of which only the names can be kept.
    """
    alike = len(set(experiment.kinds)) <= 1  # one architecture, if not the same weights
    known: dict[str, Any] = {
        "model": _one_or_each([_model(it) for it in experiment.models[: 1 if alike else None]]),
        "dataset": experiment.dataset.name,
        "algorithm": _one_or_each([repr(it) for it in experiment.algorithms]),
        "peers": experiment.peers,
        "rounds": experiment.rounds,
        "batch_size": experiment.batch_size,
        "seed": experiment.seed,
        "optimizer": _one_or_each([_optimizer(experiment, k) for k in range(len(experiment.optimizers))]),
        "loss": called(experiment.loss),
        "shards": experiment.sharding,
        "evaluate_every": experiment.evaluate_every,
        "engine": _engine(engine),
    }
    asked = {name: getattr(experiment, name) for name in ("schedule", "precision", "clip", "epochs")}
    known |= {name: _plain(value) for name, value in asked.items() if value is not None}
    if experiment.budget is not None:
        known["budget"] = {name: value for name, value in vars(experiment.budget).items() if value is not None}
    if experiment.found.unstacked:
        known |= {"stacked": False, "unstacked": experiment.found.unstacked}
    if experiment.metrics:
        known["metrics"] = list(experiment.metrics)
    if experiment.public is not None:
        known["public"] = list(experiment.public.shape)
    return known


@cache
def versions() -> dict[str, str]:
    """The versions of what computes: Python, labkit, torch, Dask and NumPy, and the kind of machine."""
    found = {"python": platform.python_version()}
    for package in ("labkit", "torch", "dask", "distributed", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {"platform": platform.platform()}


def _model(model: nn.Module) -> dict[str, Any]:
    return {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}


def _optimizer(experiment: Experiment, peer: int) -> dict[str, Any]:
    made = experiment.optimizer_like(peer)
    return {"class": type(made).__name__, **{name: _plain(value) for name, value in made.defaults.items()}}


def _engine(engine: Engine) -> dict[str, Any]:
    known: dict[str, Any] = {"class": type(engine).__name__}
    names: list[str] = [field.name for field in fields(engine)] if is_dataclass(engine) else []
    for name in names:
        value = getattr(engine, name)
        known[name] = value.kind if isinstance(value, Lab) else _plain(value)  # its workers come and go
    return known


def _one_or_each(each: list[Any]) -> Any:
    return each[0] if len(each) == 1 else each


def _plain(value: Any) -> Any:
    """The value itself where JSON has it, a list of such, or what it is called."""
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [_plain(it) for it in value]
    return called(value) if callable(value) else repr(value)


def called(value: Any) -> str:
    """What a function, a partial or an object is called, with a partial's settings."""
    inner = getattr(value, "func", None)
    if inner is not None:
        given = [repr(it) for it in value.args] + [f"{name}={it!r}" for name, it in value.keywords.items()]
        return f"{called(inner)}({', '.join(given)})"
    return str(getattr(value, "__qualname__", None) or repr(value))
