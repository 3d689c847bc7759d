"""Record: what a run was asked to do, and by which versions, as plain data: enough to do it again."""

from __future__ import annotations

import platform
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from typing import Any

import torch
from torch import nn

from labkit.cluster.lab import Lab
from labkit.engines.experiment import Engine, Experiment

_PACKAGES = ("labkit", "torch", "dask", "distributed", "numpy")


def settings(engine: Engine, experiment: Experiment) -> dict[str, Any]:
    """What decides the run's result, as numbers, words, lists and dicts; one thing for all peers, or a list for each.

    Models, losses and schedules are functions, of which only the names can be kept.
    """
    known: dict[str, Any] = {
        "model": _one_or_each([_model(it) for it in experiment.models[: 1 if _alike(experiment) else None]]),
        "dataset": experiment.dataset.name,
        "algorithm": _one_or_each([repr(it) for it in experiment.algorithms]),
        "peers": experiment.peers,
        "rounds": experiment.rounds,
        "batch_size": experiment.batch_size,
        "seed": experiment.seed,
        "optimizer": _one_or_each([_optimizer(experiment, k) for k in range(len(experiment.optimizers))]),
        "loss": _name(experiment.loss),
        "shards": experiment.sharding,
        "evaluate_every": experiment.evaluate_every,
        "engine": _engine(engine),
    }
    asked = {name: getattr(experiment, name) for name in ("schedule", "precision", "clip", "epochs")}
    known |= {name: _plain(value) for name, value in asked.items() if value is not None}
    if experiment.public is not None:
        known["public"] = list(experiment.public.shape)
    return known


@cache
def versions() -> dict[str, str]:
    """The versions of what computes: Python, labkit, torch, Dask and NumPy, and the kind of machine."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {"platform": platform.platform()}


def learning_rate(experiment: Experiment) -> float:
    """The first peer's, as its optimiser is made."""
    return float(_made(experiment, 0).param_groups[0]["lr"])


def samples_per_round(experiment: Experiment) -> float:
    """Training examples that all peers together go through in a round, on average."""
    if experiment.epochs is not None:
        return experiment.epochs * sum(map(experiment.examples, range(experiment.peers))) / experiment.rounds
    return experiment.steps_per_round * experiment.peers * experiment.batch_size


def _alike(experiment: Experiment) -> bool:
    """Whether all peers' models have one architecture, if not the same weights."""
    return len(set(experiment.kinds or (0,))) == 1


def _model(model: nn.Module) -> dict[str, Any]:
    return {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}


def _made(experiment: Experiment, peer: int) -> torch.optim.Optimizer:
    return experiment.optimizer_of(peer)([torch.zeros(1, requires_grad=True)])


def _optimizer(experiment: Experiment, peer: int) -> dict[str, Any]:
    made = _made(experiment, peer)
    return {"class": type(made).__name__, **{name: _plain(value) for name, value in made.defaults.items()}}


def _engine(engine: Engine) -> dict[str, Any]:
    known: dict[str, Any] = {"class": type(engine).__name__}
    names: list[str] = [field.name for field in fields(engine)] if is_dataclass(engine) else []
    for name in names:
        value = getattr(engine, name)
        known[name] = value.kind if isinstance(value, Lab) else _plain(value)  # workers come and go
    return known


def _one_or_each(each: list[Any]) -> Any:
    return each[0] if len(each) == 1 else each


def _plain(value: Any) -> Any:
    """The value itself where JSON has it, a list of such, or what it is called."""
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [_plain(it) for it in value]
    return _name(value) if callable(value) else repr(value)


def _name(value: Any) -> str:
    """What a function, a partial or an object is called, with a partial's settings."""
    inner = getattr(value, "func", None)
    if inner is not None:
        given = [repr(it) for it in value.args] + [f"{name}={it!r}" for name, it in value.keywords.items()]
        return f"{_name(inner)}({', '.join(given)})"
    return str(getattr(value, "__qualname__", None) or repr(value))
