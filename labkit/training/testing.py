"""Testing: which metrics, best models and comparisons of outputs a run may be asked for, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from labkit.algorithms import Algorithm
from labkit.algorithms.predictions import outputs_of
from labkit.algorithms.traits import Traits
from labkit.algorithms.wrapper import Wrapper
from labkit.data import Dataset, Tensors
from labkit.engines.evaluation import AT_ONCE, form_of, measured
from labkit.engines.experiment import Experiment, Metric
from labkit.engines.task import Right
from labkit.errors import SettingError
from labkit.exchange import Kind
from labkit.history.measures import TAKEN
from labkit.training.settings import Settings


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
        if name.replace("_", " ") in TAKEN or name.startswith("client "):
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


def compared(experiment: Experiment) -> Experiment:
    """The experiment whose peers know what their outputs are, where an algorithm compares or averages predictions.

    Raises SettingError for one that compares scores of classes where outputs are none.
    """
    known = [(it, Traits.of(it)) for it in experiment.algorithms]
    if not any(traits.class_scores or Kind.PREDICTIONS in traits.kinds for _, traits in known):
        return experiment
    comparing = next((it for it, traits in known if traits.class_scores), None)
    dataset, forms = experiment.dataset, set()
    if isinstance(dataset, Tensors):
        x, y = dataset.x, dataset.y
    else:
        x, y = (dataset.test_x, dataset.test_y) if dataset.tested else dataset.trial()
    for peer in set(experiment.kinds) or {0}:  # a kind has the number of the first peer that is of it
        shape, right, _ = form_of(experiment.fresh_model(peer).cpu(), experiment.loss, x, y)
        axis = None if right is None else right.axis
        if axis is None and comparing is not None:
            raise _no_scores(comparing, shape, right, y)
        labels = right is not None and axis is None and right.threshold == 0
        forms.add((axis - len(shape) - 1 if axis is not None and axis > 0 else axis, labels))
    if len(forms) > 1:
        raise SettingError(
            f"{_called(comparing or experiment.algorithm)} compares predictions, and the peers' models differ in the "
            "dimension of the classes: let all of them put it in the same place."
        )
    ((classes, labels),) = forms
    return replace(experiment, found=replace(experiment.found, classes=classes, labels=labels))


def _no_scores(algorithm: Algorithm, shape: torch.Size, right: Right | None, targets: Tensor) -> SettingError:
    if right is not None:
        what = "each say yes or no by themselves"
    elif targets.is_floating_point():
        what = "are compared with real numbers"
    else:
        what = f"do not fit class numbers of shape {tuple(targets.shape[1:])}"
    return SettingError(
        f"{_called(algorithm)} compares scores of classes, and the outputs, of shape {tuple(shape)} for each example, "
        f"are none, for they {what}: take an algorithm that exchanges parameters or gradients, or one that averages "
        "outputs as they are, FedMD() or Ensemble()."
    )


def _called(algorithm: Algorithm) -> str:
    return type(algorithm.innermost if isinstance(algorithm, Wrapper) else algorithm).__name__
