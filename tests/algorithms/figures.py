"""Trainings on the digits, and their accuracies over seeds: what the tests of the algorithms' purpose share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, stdev
from typing import ClassVar

import torch
from torch import nn

import labkit as lk
from labkit.algorithms import Independent
from tests.engines.experiments import mlp

DIGITS = lk.data.load("digits")
PRIVATE, PUBLIC = DIGITS.hold_out(0.2)


def perceptron(hidden):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def convolution():
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def sgd(lr, **settings):
    return partial(torch.optim.SGD, lr=lr, **settings)


def few(examples):
    """The first digits only."""
    return replace(DIGITS, x=DIGITS.x[:examples], y=DIGITS.y[:examples], source=None)


def trained(algorithm, model=mlp, dataset=DIGITS, **settings):
    """One training on the simulator, tested once at its end."""
    settings = {"batch_size": 16, "optimizer": sgd(0.1), "evaluate_every": settings.get("rounds", 50)} | settings
    return lk.train(model, dataset, algorithm, **settings).result(120)


class Figures:
    """Test accuracies over seeds, which compare by their mean and print with their spread."""

    def __init__(self, algorithm, seeds, **settings):
        self.runs = [trained(algorithm, seed=seed, **settings) for seed in range(seeds)]
        self.mean = fmean(run.final.accuracy for run in self.runs)
        self.bytes = self.runs[0].bytes
        self._name = repr(algorithm)

    def __repr__(self):
        spread = stdev([run.final.accuracy for run in self.runs]) if len(self.runs) > 1 else 0
        return f"{self._name}: {100 * self.mean:.1f} ± {100 * spread:.1f} % over {len(self.runs)} seeds"


def require_better(one, other, points):
    """The first is at least so many points of a hundred better on average."""
    assert one.mean >= other.mean + points / 100, f"{one} is not {points} points above {other}"


@dataclass(frozen=True)
class Apart(Independent):
    """Independent peers that start apart and see the same batches."""

    starts_apart: ClassVar[bool] = True
    same_batches: ClassVar[bool] = True
