"""Every algorithm learns the digits."""

from __future__ import annotations

from functools import partial

import pytest

from labkit.algorithms import (
    EASGD,
    SCAFFOLD,
    AllReduce,
    Codistillation,
    CoTeaching,
    CoTeachingPlus,
    DiLoCo,
    Distillation,
    Ensemble,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDF,
    FedDyn,
    FedMD,
    FedNova,
    FedProx,
    FedYogi,
    Gossip,
    Independent,
    LocalSGD,
    Mutual,
    PostLocalSGD,
)
from tests.algorithms.figures import (
    PRIVATE,
    PUBLIC,
    perceptron,
    trained,
)

LEARNERS = [
    (Independent(10), 40),
    (Ensemble(10), 40),
    (AllReduce(), 400),
    (LocalSGD(10), 40),
    (PostLocalSGD(10, warmup=5), 40),
    (DiLoCo(10), 40),
    (EASGD(10), 40),
    (FedAvg(10, participation=0.5), 40),
    (FedProx(10, participation=0.5), 40),
    (FedAvgM(10, participation=0.5), 40),
    (FedAdam(10, participation=0.5), 40),
    (FedYogi(10, participation=0.5), 40),
    (FedNova(epochs=1, participation=0.5), 40),
    (FedDyn(10, participation=0.5), 40),
    (SCAFFOLD(10, participation=0.5), 40),
    (FedDF(10, participation=0.5), 40),
    (Gossip(every=2), 200),
    (Mutual(), 400),
    (Codistillation(10), 40),
    (CoTeaching(), 400),
    (CoTeachingPlus(), 400),
    (FedMD(10), 40),
]


@pytest.mark.parametrize(("algorithm", "rounds"), LEARNERS, ids=[type(it).__name__ for it, _ in LEARNERS])
def test_it_learns_the_digits(algorithm, rounds):
    run = trained(algorithm, dataset=PRIVATE, public=PUBLIC, peers=4, rounds=rounds)
    assert run.final.accuracy > 0.8, run


def test_distillation_learns_the_digits_from_a_teacher_without_any_label():
    teacher = trained(AllReduce(), partial(perceptron, 64), peers=4, rounds=800).models[0]
    run = trained(Distillation(teacher, weight=1.0, every=10), peers=4, rounds=40)
    assert run.final.accuracy > 0.8, run
