"""Fingerprint: what decides a run's result, so that a checkpoint goes on in the run that made it and in no other.

Code and objects count by what they are made of, data by their numbers, or a sample where these are many; see `digest`.
The first weights count nothing, for a checkpoint has later ones, nor does how many rounds are trained.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from labkit.engines.digest import described, digest
from labkit.engines.experiment import Experiment

Fingerprint = dict[str, list[str]]  # what it is -> the words for it, and a digest of all that they do not say


def fingerprint(experiment: Experiment) -> Fingerprint:
    """What has to be the same in a run that goes on from a checkpoint; neither the workers nor the rounds are in it."""
    data, models = experiment.dataset, experiment.models
    numbers = [getattr(data, name, None) for name in ("x", "y", "test_x", "test_y")] if data.stackable else []
    optimizers = [_optimizer(make, experiment.model_of(k)) for k, make in enumerate(experiment.optimizers)]
    weights = sum(p.numel() for p in models[0].parameters())
    parts: dict[str, tuple[object, Any]] = {
        "algorithm": (", ".join(dict.fromkeys(map(described, experiment.algorithms))), experiment.algorithms),
        "peers": (experiment.peers, ()),
        "batch size": (experiment.batch_size, ()),
        "seed": (experiment.seed, ()),
        "data": (data.name, (numbers, data.trial())),
        "model": (f"{type(models[0]).__name__} of {weights} numbers", models),
        "loss": (_name(experiment.loss), experiment.loss),
        "optimizer": (", ".join(dict.fromkeys(words for words, _ in optimizers)), optimizers),
        "shards": (experiment.sharding, (*experiment.shards, experiment.common_order)),
        "public inputs": (experiment.public is not None, experiment.public),
        "schedule": (_name(experiment.schedule), experiment.schedule),
        "precision": (experiment.precision, ()),
        "clip": (experiment.clip, ()),
        "batches": ("endless" if experiment.epochs is None else "in epochs", ()),
    }
    return {name: [str(words), digest(what)[:16]] for name, (words, what) in parts.items()}


def in_words(mark: Fingerprint) -> str:
    """The run in a few words."""
    of = {name: words for name, (words, _) in mark.items()}
    return (
        f"{of['algorithm']} with {of['peers']} peers, batches of {of['batch size']}, seed {of['seed']}, on "
        f"{of['data']}, {of['model']}"
    )


def difference(one: Fingerprint, other: Fingerprint) -> list[str]:
    """What differs, each with the words for it where these differ too.

    >>> difference({"loss": ["mse_loss", "a"], "seed": ["1", ""]}, {"loss": ["mine", "b"], "seed": ["1", ""]})
    ['the loss (mse_loss, now mine)']
    """
    found = []
    for name in sorted(one.keys() | other.keys()):
        then, now = one.get(name, ["unknown", ""]), other.get(name, ["unknown", ""])
        if then != now:
            found.append(f"the {name}" + (f" ({then[0]}, now {now[0]})" if then[0] != now[0] else ""))
    return found


def _name(what: Any) -> str:
    while isinstance(what, partial):
        what = what.func
    return str(getattr(what, "__name__", type(what).__name__)) if what is not None else "none"


def _optimizer(make: Callable[..., torch.optim.Optimizer], model: nn.Module) -> tuple[str, Any]:
    """An optimiser of the model's parameters in words, and what is not in these."""
    made = make([p for p in model.parameters() if p.requires_grad])
    settings = [{name: it for name, it in group.items() if name != "params"} for group in made.param_groups]
    counts = [len(group["params"]) for group in made.param_groups]
    words = ", ".join(f"{name}={value}" for name, value in made.defaults.items() if value not in (None, False, 0))
    return f"{type(made).__name__}({words})", (type(made), settings, counts)
