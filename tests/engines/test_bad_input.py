"""What cannot work is refused in one clear sentence on every engine, and a cluster stays usable afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import nn

import labkit as lk
from labkit.algorithms import (
    AllReduce,
    Codistillation,
    Compressed,
    CoTeaching,
    FedAvg,
    FedMD,
    Gossip,
    LocalSGD,
    Mutual,
    Robust,
)
from labkit.errors import DataError, ExchangeError, ModelError, SettingError
from labkit.exchange import Krum, Mean, TopK, TrimmedMean
from tests.engines.experiments import mlp, result


def narrow():
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


@pytest.fixture(params=["lockstep", "stacked", "cluster"])
def on(request):
    """Each engine; of the cluster's workers it is seen that they still train afterwards."""
    if request.param != "cluster":
        yield lk.Lockstep() if request.param == "lockstep" else lk.Simulator()
        return
    lab = request.getfixturevalue("lab")
    yield lab
    assert len(result(lab, LocalSGD(2), rounds=1).models) == 2


def refused(error, says, on, algorithm, model=mlp, **settings):
    with pytest.raises(error, match=says) as caught:
        result(on, algorithm, model, rounds=2, **settings)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 400


@pytest.mark.parametrize(
    ("algorithm", "peers"),
    [
        (AllReduce(), 2),
        (LocalSGD(2), 2),
        (LocalSGD(2), 4),
        (Gossip("ring"), 4),
        (Codistillation(every=2, warmup=0), 2),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_parameters_of_different_shapes(on, algorithm, peers):
    refused(ExchangeError, "shapes", on, algorithm, [mlp, narrow] * (peers // 2), peers=peers)


def test_a_server_for_different_models(on):
    refused(ExchangeError, "no parameters that all of them share", on, FedAvg(2), [mlp, narrow])


@pytest.mark.parametrize(
    ("algorithm", "error", "says", "settings"),
    [
        (Gossip([[0.5, 0.5], [0.5, 0.5]]), ExchangeError, "joins 2 peers, but 3", {"peers": 3}),
        (Robust(AllReduce(), Krum(1)), SettingError, "good for 5 peers or more, and 4", {"peers": 4}),
        (Robust(FedAvg(2, participation=0.5), TrimmedMean(1)), SettingError, "3 peers or more, and 2", {"peers": 4}),
        (FedAvg(2, participation=0.1), SettingError, "selects nobody", {"peers": 4}),
        (CoTeaching(), SettingError, "do not make pairs", {"peers": 3}),
        (FedMD(warmup=0), DataError, "give public=", {}),
        (Compressed(AllReduce(), TopK(1e-5)), SettingError, "keeps none of", {}),
        (LocalSGD(2), DataError, "shard of peer 1 is empty", {"shards": lk.Partition.of(64, [list(range(64)), []])}),
        (Mutual(), SettingError, "algorithm lists 3 for 2 peers", {"lists": 3}),
    ],
    ids=["W", "Krum", "trimmed mean", "participation", "pairs", "public", "k = 0", "empty shard", "list"],
)
def test_settings_that_do_not_fit(on, algorithm, error, says, settings):
    lists = settings.get("lists")
    rest = {name: value for name, value in settings.items() if name != "lists"}
    refused(error, says, on, [algorithm] * lists if lists else algorithm, **rest)


def test_peers_that_are_to_start_apart_from_one_module(on):
    """Identical peers that see the same batches would stay identical, and learn nothing from each other."""
    refused(ModelError, "start from weights of its own.*give a function", on, Mutual(), mlp())


def test_what_is_shared_but_not_the_same_for_all(on):
    @dataclass(frozen=True)
    class Selfish:
        """Shares what it has not exchanged."""

        def round(self, peer, batches):
            peer.step(peer.loss(next(batches)))
            mean = yield Mean(peer.params)
            alone = {name: p[:1] if peer.ids.dim() else p for name, p in peer.params.items()}
            peer.shared["params"] = {name: mean[name] + p for name, p in alone.items()}

    if isinstance(on, lk.Simulator):
        on = lk.Simulator(block=1)  # one block of two peers has but one view of what is shared
    refused(ExchangeError, r"different values into shared\['params'\]", on, Selfish())
