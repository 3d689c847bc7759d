"""Who takes part: a seeded sample of a server's clients, whose number costs next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import labkit as lk
from labkit.algorithms import FedAvg
from labkit.errors import ModelError, SettingError
from tests.engines.experiments import result

REGISTERED = """
import resource, sys, torch, labkit as lk
from labkit.algorithms import FedAvg
peers = int(sys.argv[1])
torch.set_num_threads(1)
x = torch.zeros(200_000, 8)
data = lk.data.from_tensors(x, torch.arange(200_000) % 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = torch.nn.Sequential(torch.nn.Linear(8, 500), torch.nn.ReLU(), torch.nn.Linear(500, 2))
settings = dict(peers=peers, rounds=6, batch_size=1, evaluate_every=6)
run = lk.train(model, data, FedAvg(every=2, participation=100 / peers), **settings)
assert all(len(row.losses) == 100 for row in run.result(120).rows)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
def test_everybody_has_a_turn_and_the_seed_decides_when(on):
    first, again, other = (
        [row.peers for row in result(on, FedAvg(every=1, participation=0.3), peers=10, rounds=12, seed=s).rows]
        for s in (1, 1, 2)
    )
    assert first == again != other
    assert all(len(set(chosen)) == 3 for chosen in first)
    assert set().union(*first) == set(range(10))


def test_a_hundred_thousand_registered_clients_need_the_memory_of_those_who_take_part():
    """A model of 5,500 numbers: all 100,000 would take 2.2 GB; what is stated per client is its shard and its place."""
    kilobytes = {
        peers: int(
            subprocess.run([sys.executable, "-c", REGISTERED, str(peers)], check=True, capture_output=True).stdout
        )
        for peers in (100, 100_000)
    }
    assert kilobytes[100_000] - kilobytes[100] < 200_000, kilobytes


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (0.04, "selects nobody.*at least 0.1"),
        (0, "participation is 0;.*above 0"),
        (1.5, "participation is 1.5;.*up to 1"),
    ],
)
def test_a_participation_that_selects_nobody_is_refused(share, says):
    with pytest.raises(SettingError, match=says):
        result(None, FedAvg(participation=share), peers=10)


def test_one_model_is_evaluated_and_comes_back_where_the_server_has_the_only_one():
    partial = result(None, FedAvg(every=1, participation=0.5), peers=4)
    everyone = result(None, FedAvg(every=1), peers=4)
    assert len(partial.models) == 1 and len(everyone.models) == 4
    assert len(partial.final.accuracies) == len(everyone.final.accuracies) == 1
    assert partial.curve("losses")[1][0] == (pytest.approx(partial.rows[0].loss),)


def test_clients_that_come_and_go_cannot_keep_running_statistics():
    import torch

    def normalised():
        return torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 10))

    with pytest.raises(ModelError, match="GroupNorm"):
        result(lk.Lockstep(), FedAvg(every=1, participation=0.5), normalised, peers=4)
