"""Those who exchange predictions do what they are for: teach each other, and survive wrong labels.

Learning rates were chosen for the baseline where there is one, or for both; all else is the paper's or a default.
Figures stand in the assertions' messages.
"""

from __future__ import annotations

import math
from functools import partial
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import (
    AllReduce,
    Codistillation,
    CoTeaching,
    CoTeachingPlus,
    Distillation,
    Ensemble,
    FedMD,
    Independent,
    Mutual,
)
from tests.algorithms.figures import (
    DIGITS,
    PRIVATE,
    PUBLIC,
    Apart,
    Figures,
    convolution,
    few,
    perceptron,
    require_better,
    sgd,
    trained,
)
from tests.engines.experiments import mlp


@pytest.mark.claims
def test_mutual_learners_are_no_worse_than_independent_ones_on_average():
    """Four convolutional networks on 100 digits; six seeds, the same starts and batches for both.

    Half a point here, and from none to half a point in other settings tried on the digits; the paper has two points on
    CIFAR-100.
    """
    settings = {"dataset": few(100), "peers": 4, "rounds": 400, "batch_size": 32}
    settings |= {"model": convolution, "optimizer": sgd(0.05, momentum=0.9)}
    together, alone = Figures(Mutual(), 6, **settings), Figures(Apart(), 6, **settings)
    assert together.mean >= alone.mean, f"{together}; {alone}"


def test_mutual_learners_agree_more():
    def disagreement(history):
        with torch.no_grad():
            said = torch.stack([model(DIGITS.test_x).softmax(-1) for model in history.models])
        return float((said - said.mean(0)).abs().sum(-1).mean())

    settings = {"dataset": few(200), "peers": 4, "rounds": 300}
    together, alone = (disagreement(trained(it, **settings)) for it in (Mutual(), Apart()))
    assert together < 0.8 * alone, (together, alone)


def test_an_ensemble_is_better_than_its_members():
    gains = []
    for seed in range(4):
        run = trained(Ensemble(10), dataset=few(400), peers=4, rounds=40, seed=seed)
        with torch.no_grad():
            said = torch.stack([model(DIGITS.test_x).argmax(-1) for model in run.models])
        gains.append(run.final.accuracy - float((said == DIGITS.test_y).float().mean()))
    assert fmean(gains) > 0.01, gains


@pytest.mark.claims
def test_co_teaching_survives_wrong_labels_where_plain_training_learns_them_by_heart():
    """Half of the labels are wrong; the same starts and batches for all, accuracies are those of single networks."""
    plain, pair, plus = [], [], []
    for seed in range(3):
        wrong = {"dataset": lk.data.noisy(DIGITS, 0.5, seed=seed), "seed": seed, "peers": 2, "batch_size": 64}
        wrong |= {"model": partial(perceptron, 128), "rounds": 1000, "optimizer": sgd(0.05, momentum=0.9)}
        for algorithm, into in ((Apart(), plain), (CoTeaching(0.5), pair), (CoTeachingPlus(0.5, warmup=5), plus)):
            into.append(trained(algorithm, **wrong).final.accuracy)
    figures = {"plain": plain, "co-teaching": pair, "co-teaching+": plus}
    assert fmean(pair) >= fmean(plain) + 0.05, figures
    assert fmean(plus) >= fmean(plain) + 0.03, figures


@pytest.mark.claims
def test_codistillation_helps_and_tolerates_stale_teachers():
    """Two networks with 200 digits each; a teacher that is up to 100 steps old is as good as one of the step before."""
    settings = {"dataset": few(400), "model": partial(perceptron, 64), "peers": 2}
    alone = Figures(Independent(50), 4, rounds=12, **settings)
    fresh = Figures(Codistillation(1, warmup=100), 4, rounds=600, **settings)
    stale = Figures(Codistillation(100), 4, rounds=6, **settings)
    assert stale.bytes < fresh.bytes / 90
    assert min(fresh.mean, stale.mean) > alone.mean and stale.mean > fresh.mean - 0.005, f"{stale}; {fresh}; {alone}"


@pytest.mark.claims
def test_fed_md_lets_different_architectures_help_each_other():
    """Four architectures that never see each other's weights or data; only logits on public inputs travel."""
    models = [partial(perceptron, 16), partial(perceptron, 64), convolution, partial(nn.Linear, 64, 10)]
    settings = {"model": models, "dataset": PRIVATE, "public": PUBLIC, "rounds": 60}
    together, alone = Figures(FedMD(8), 3, **settings), Figures(Independent(8), 3, **settings)
    require_better(together, alone, points=0.5)


def test_distillation_makes_a_small_network_better_than_the_same_labels_do():
    teacher = trained(AllReduce(), partial(perceptron, 64), peers=4, rounds=800).models[0]
    settings = {"model": partial(perceptron, 16), "dataset": few(200), "peers": 2, "rounds": 30}
    taught, alone = Figures(Distillation(teacher, every=10), 4, **settings), Figures(Independent(10), 4, **settings)
    require_better(taught, alone, points=0.5)


def test_what_travels_is_what_the_kind_of_exchange_costs():
    """Parameters for those who average them, logits for mutual learning, a few numbers for co-teaching."""
    numbers = sum(p.numel() for p in mlp().parameters())
    settings = {"peers": 4, "rounds": 10, "batch_size": 16}
    sent = {type(it).__name__: trained(it, **settings).bytes / 10 for it in (AllReduce(), Mutual(), CoTeaching(0.0))}
    assert sent["AllReduce"] == 2 * 3 / 4 * numbers * 4
    assert sent["Mutual"] == 3 * 16 * 10 * 4
    assert sent["CoTeaching"] == 16 * np.dtype(np.int64).itemsize
    assert math.isclose(sent["AllReduce"] / sent["CoTeaching"], 113, rel_tol=0.01)
