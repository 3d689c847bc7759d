"""Settings out of range are refused where the algorithm is made, in one sentence that says what to give."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from labkit.algorithms import (
    EASGD,
    SCAFFOLD,
    AllReduce,
    Codistillation,
    CoTeaching,
    CoTeachingPlus,
    DiLoCo,
    Distillation,
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
from labkit.algorithms.clients import Clients, scaled
from labkit.errors import LabkitError, ModelError, SettingError

TEACHER = nn.Linear(2, 2)
CLIENTS = [FedAvg, FedProx, FedAvgM, FedAdam, FedYogi, FedNova, FedDyn, SCAFFOLD, FedDF]
STEPPING = [Independent, LocalSGD, PostLocalSGD, DiLoCo, EASGD, Gossip, Codistillation, FedMD, *CLIENTS]
OUT_OF_RANGE = [
    *((it, {"every": every}) for it in STEPPING for every in (0, -1, 1.5, True)),
    *((it, {"epochs": 0}) for it in CLIENTS),
    *((it, {"participation": share}) for it in CLIENTS for share in (0, 1.1, -0.5, "half", float("nan"))),
    (FedProx, {"mu": -0.1}),
    (FedAvgM, {"momentum": 1}),
    (FedAvgM, {"momentum": -0.1}),
    (FedAvgM, {"server_lr": 0}),
    (FedAdam, {"server_lr": float("inf")}),
    (FedAdam, {"beta1": 1.0}),
    (FedAdam, {"tau": 0}),
    (FedYogi, {"beta2": 1.5}),
    (FedNova, {"momentum": 1.0}),
    (FedDyn, {"alpha": 0}),
    (SCAFFOLD, {"server_lr": 0}),
    (FedDF, {"public": 0}),
    (FedDF, {"server_lr": -1}),
    (PostLocalSGD, {"warmup": -1}),
    (DiLoCo, {"outer_lr": 0}),
    (DiLoCo, {"momentum": 1}),
    (EASGD, {"beta": 0}),
    (EASGD, {"beta": 1.5}),
    (EASGD, {"alpha": -0.1}),
    (Gossip, {"topology": [[0.5, 0.5], [0.9, 0.1]]}),
    (AllReduce, {"form": "star"}),
    (Mutual, {"weight": -1}),
    (Codistillation, {"weight": -1}),
    (Codistillation, {"warmup": 0.5}),
    (CoTeaching, {"forget": 1.1}),
    (CoTeaching, {"ramp": 0}),
    (CoTeachingPlus, {"warmup": -1}),
    (FedMD, {"public": 0}),
    (FedMD, {"warmup": -1}),
    (Distillation, {"teacher": TEACHER, "temperature": 0}),
    (Distillation, {"teacher": TEACHER, "weight": 1.5}),
    (Distillation, {"teacher": TEACHER, "every": 0}),
]


@pytest.mark.parametrize(("algorithm", "settings"), OUT_OF_RANGE, ids=str)
def test_settings_out_of_range_are_refused(algorithm, settings):
    with pytest.raises(SettingError) as caught:
        algorithm(**settings)
    text = str(caught.value)
    assert re.search("[:;] (give|let) ", text)
    assert text.endswith(".") and "\n" not in text


def test_numbers_that_numpy_made_are_numbers():
    assert FedProx(every=np.int64(3), mu=np.float32(0.5)).every == 3


def test_a_range_says_what_to_give():
    with pytest.raises(SettingError, match=r"^mu is -1; give a number from 0 on\.$"):
        FedProx(mu=-1)
    with pytest.raises(SettingError, match=r"^alpha is 0; give a number above 0\.$"):
        FedDyn(alpha=0)
    with pytest.raises(SettingError, match=r"^participation is 2; give a number above 0 up to 1\.$"):
        FedAvg(participation=2)


@pytest.mark.parametrize(
    ("algorithm", "peers", "says"),
    [
        (Mutual(), 1, "takes two: give peers=2 or more"),
        (CoTeaching(), 5, "5 peers do not make pairs"),
        (CoTeachingPlus(), 1, "1 peers do not make pairs"),
        (Gossip([[0.5, 0.5], [0.5, 0.5]]), 3, "joins 2 peers, but 3 take part"),
        (Gossip("hypercube"), 4, "'hypercube' is no topology"),
    ],
    ids=repr,
)
def test_numbers_of_peers_that_do_not_fit_are_refused(algorithm, peers, says):
    with pytest.raises(LabkitError, match=says):
        algorithm.check(peers)


def test_a_teacher_that_is_no_module_is_refused():
    with pytest.raises(ModelError, match="teacher is a dict: give a trained module"):
        Distillation(dict(TEACHER.state_dict()))


@pytest.mark.parametrize("algorithm", CLIENTS)
def test_a_servers_clients_have_their_common_settings_first(algorithm):
    assert issubclass(algorithm, Clients)
    made = algorithm(4, None, 0.5)
    assert (made.every, made.epochs, made.participation) == (4, None, 0.5)


def test_a_factor_for_each_peer_scales_its_own_parameters():
    x = {"w": torch.ones(2, 3, 2), "b": torch.ones(2)}
    assert scaled(2.0, x)["w"].unique().tolist() == [2.0]
    each = scaled(torch.tensor([1.0, 3.0]), x)
    assert each["w"][1].unique().tolist() == [3.0] and each["b"].tolist() == [1.0, 3.0]
    assert scaled(torch.tensor(0.5), {"w": torch.ones(3)})["w"].tolist() == [0.5] * 3
