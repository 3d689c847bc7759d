"""Testing: which metrics and which best models a run may be asked for, found out before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from labkit.data import Dataset
from labkit.engines.evaluation import AT_ONCE, measured, outputs_of
from labkit.engines.experiment import Experiment, Metric
from labkit.errors import SettingError
from labkit.history.measures import CLIENTS
from labkit.training.settings import Settings

_TAKEN = ("loss", "accuracy", "test loss", "round", "seconds", "bytes", "steps", "learning rate", *CLIENTS)


def asked_of_tests(settings: Settings, clients: bool) -> dict[str, Any]:
    """The metrics, and whether the best models are kept; `clients` have test examples of their own, if so."""
    require_until(settings.until)
    metrics = require_metrics(settings.metrics, settings.dataset, clients)
    return {"metrics": metrics, "keeps_best": require_keep(settings.keep, settings.dataset)}


def require_metrics(metrics: Any, dataset: Dataset, clients: bool) -> dict[str, Metric]:
    """The metrics by name; SettingError for what are none, or where there is nothing to test on."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping) or not all(
        isinstance(name, str) and callable(fn) for name, fn in metrics.items()
    ):
        raise SettingError(
            f'metrics={metrics!r} are no functions by name: give {{"mae": function}}, where the function takes outputs '
            "and targets and returns a number."
        )
    for name in metrics:
        if name.replace("_", " ") in _TAKEN or name.startswith("client "):
            raise SettingError(f"metrics has {name!r}, which rows have already: choose another name.")
    if metrics and not (dataset.tested or clients):
        raise SettingError(f"{dataset.name} has no test examples for metrics: give some, or leave metrics away.")
    return dict(metrics)


def require_keep(keep: Any, dataset: Dataset) -> bool:
    """Whether the best models are kept; SettingError for anything else, or where nothing tells which are best."""
    if keep is None:
        return False
    if keep != "best":
        raise SettingError(f'keep={keep!r} is unknown; give "best", or leave it away.')
    if not dataset.tested:
        raise SettingError(
            f'{dataset.name} has no test examples to tell the best models by: give some, or leave keep="best" away.'
        )
    return True


def require_until(until: Any) -> None:
    """Raise SettingError for what cannot be asked whether to end."""
    if until is not None and not callable(until):
        raise SettingError(
            f"until={until!r} is no function: give one of the history so far that says whether to end, such as "
            "lambda history: history.final.accuracy > 0.9."
        )


def try_metrics(experiment: Experiment) -> None:
    """Raise ModelError where a metric fails on a model's outputs for test examples, or gives no number."""
    if not experiment.metrics:
        return
    dataset = experiment.dataset
    x, y = (dataset.test_x, dataset.test_y) if dataset.tested else dataset.examples(experiment.client_tests[0])
    with torch.no_grad(), torch.random.fork_rng():
        outputs = outputs_of(experiment.fresh_model().cpu().eval()(x[:AT_ONCE]))
    for name, metric in experiment.metrics.items():
        measured(name, metric, outputs, y[:AT_ONCE])
