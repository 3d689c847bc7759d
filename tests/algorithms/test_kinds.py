"""What a mean is of: wrappers act on it where they are defined for it, and are refused or leave it alone elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import (
    EASGD,
    SCAFFOLD,
    AllReduce,
    Byzantine,
    Codistillation,
    Compressed,
    CoTeaching,
    DiLoCo,
    FedAdam,
    FedAvg,
    FedDF,
    FedDyn,
    FedMD,
    FedNova,
    Gossip,
    LocalSGD,
    Mutual,
    PostLocalSGD,
    PowerSGD,
    Private,
    Robust,
    Secure,
    Wrapper,
)
from labkit.algorithms.traits import Traits
from labkit.errors import SettingError
from labkit.exchange import CoordinateMedian, Gather, Kind, Mean, RandomK, TopK, TrimmedMean
from tests.algorithms.hand import Drift, Tell, alone, in_a_stack, in_lockstep, stacked
from tests.engines.experiments import mlp, parameters, result

DIGITS = lk.data.load("digits")
ENGINES = {"lockstep": lk.Lockstep(), "stacked": lk.Simulator()}
STILL = partial(torch.optim.SGD, lr=0.0)
engines = pytest.mark.parametrize("on", ENGINES.values(), ids=ENGINES)


@dataclass(frozen=True)
class Heard(Wrapper):
    """Notes the round and the kind of each mean, and changes nothing."""

    notes: Any = ()

    def exchange(self, mean, peer, index):
        self.notes.append((peer.number, mean.kind))
        return (yield mean)


def heard(algorithm, rounds=4, **settings):
    """The kinds of the means of each round, of peer 0 among several."""
    notes: list[Any] = []
    settings = {"peers": 2, "rounds": rounds, "batch_size": 16, "public": DIGITS.x[:32]} | settings
    lk.train(settings.pop("model", mlp), DIGITS, Heard(algorithm, notes), **settings).result(60)
    return [tuple(kind for number, kind in notes if number == k) for k in range(1, rounds + 1)]


AVERAGES = [
    *(AllReduce(), LocalSGD(2), PostLocalSGD(3, warmup=2), DiLoCo(2), EASGD(2), FedAvg(2), FedAdam(2), FedDyn(2)),
    *(FedNova(2), SCAFFOLD(2), FedDF(2, public=1), FedMD(2, public=1, warmup=0)),
]


@pytest.mark.parametrize("algorithm", AVERAGES, ids=repr)
def test_an_algorithm_asks_for_the_means_that_it_says_it_does(algorithm):
    traits = Traits.of(algorithm)
    assert heard(algorithm) == [traits.means_in(number) for number in range(1, 5)]


@pytest.mark.parametrize("inner", [Gossip(), Mutual(), Codistillation(), CoTeaching()], ids=repr)
@pytest.mark.parametrize("wrapper", [Compressed, Secure, Private, Robust, Byzantine])
def test_what_asks_for_no_mean_is_refused_before_it_runs(wrapper, inner):
    with pytest.raises(SettingError, match=rf"{wrapper.__name__} works on means, and {type(inner).__name__} asks for"):
        wrapper(inner)


# -- algorithms of somebody's own, which say nothing


@dataclass(frozen=True)
class Own:
    """One batch, then the mean of something."""

    what: str

    def round(self, peer, batches):
        before = {name: p.clone() for name, p in peer.params.items()}
        gradients = peer.gradients(peer.loss(next(batches)))
        peer.apply(gradients)
        if self.what == "measured":
            peer.state["measured"] = yield Mean(
                sum(g.square().flatten(peer.ids.dim()).sum(-1) for g in gradients.values())
            )
        elif self.what == "parameters":
            peer.params = yield Mean(peer.params)
        elif self.what == "gradients":
            peer.state["mean"] = yield Mean(gradients)
        elif self.what == "changes":
            peer.params = yield Mean(peer.params, start=before)
        elif self.what == "told":
            peer.state["told"] = yield Gather(peer.ids)
            peer.state["mean"] = yield Mean(gradients)


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("measured", Kind.NUMBER),
        ("parameters", Kind.PARAMETERS),
        ("gradients", Kind.GRADIENT),
        ("changes", Kind.CHANGE),
    ],
)
@engines
def test_what_an_own_algorithm_does_not_say_is_seen(on, what, kind):
    assert heard(Own(what), on=on)[1][:1] == (kind,)


@engines
def test_a_measured_number_is_not_compressed_and_not_called_private(on):
    assert result(on, Compressed(Own("measured"), TopK(0.01)), rounds=2).bytes == 2 * 4
    with pytest.raises(SettingError, match="Own also exchanges means that are no updates but numbers"):
        result(on, Private(Own("measured")), rounds=1)


@pytest.mark.parametrize("wrapper", [Compressed, Private])
@engines
def test_whole_parameters_are_neither_compressed_nor_clipped(on, wrapper):
    with pytest.raises(SettingError, match=r"mean of whole parameters: give Mean.*start|no updates but parameters"):
        result(on, wrapper(Own("parameters")), rounds=1)


@engines
def test_messages_beside_the_means_are_not_called_private(on):
    with pytest.raises(SettingError, match="Own also exchanges messages that are no means"):
        result(on, Private(Own("told")), rounds=1)


# -- error feedback


@engines
def test_the_error_of_gradients_is_not_added_to_changes_of_parameters(on):
    """With a learning rate of 0 nothing changes, so that whatever moves the models is left over from gradients."""
    algorithm = Compressed(PostLocalSGD(2, warmup=2), TopK(0.01))
    models = [result(on, algorithm, peers=3, rounds=rounds, optimizer=STILL) for rounds in (2, 5)]
    assert torch.equal(*map(parameters, models))


def test_one_error_goes_from_step_to_step_of_a_warm_up():
    """As in AllReduce, of which it is three steps a round."""
    warm, plain = Compressed(PostLocalSGD(3, warmup=2), TopK(0.05)), Compressed(AllReduce(), TopK(0.05))
    one, other = result(None, warm, peers=3, rounds=2), result(None, plain, peers=3, rounds=6)
    assert (parameters(one) - parameters(other)).abs().max() < 1e-5


@pytest.mark.parametrize("make", [lambda: FedMD(1, public=1, warmup=0), lambda: FedDF(1, public=1)], ids=["md", "df"])
def test_predictions_on_other_inputs_have_no_error_to_feed_back(make):
    """With still models each round's mean is that of what TopK leaves of that round's own predictions."""
    settings = {"public": DIGITS.x[:64], "rounds": 4, "optimizer": STILL, "seed": 1, "peers": 2, "batch_size": 8}
    walks = [
        lk.step_through(mlp, DIGITS, algorithm, **settings)
        for algorithm in (make(), Compressed(make(), TopK(0.2)), Compressed(make(), TopK(0.2), feedback=False))
    ]
    every = 2 if isinstance(make(), FedDF) else 1
    plain, kept, lost = ([met for met in walk if met.number == every] for walk in walks)
    for honest, one, other in zip(plain[1:], kept[1:], lost[1:], strict=True):
        top = [x.flatten() for x in honest.sent]
        sparse = [torch.zeros_like(x).scatter(0, at, x[at]) for x in top for at in [x.abs().topk(len(x) // 5).indices]]
        if every == 1:  # the models of FedDF's server move
            torch.testing.assert_close(one.received[0].flatten(), torch.stack(sparse).mean(0))
        torch.testing.assert_close(one.received[0], other.received[0])


def test_feedback_is_refused_where_nothing_adds_up():
    with pytest.raises(SettingError, match="FedMD asks for means of predictions, which do not add up: leave feedback"):
        Compressed(FedMD(), feedback=True)
    assert Compressed(FedDF(), feedback=True).feeds_back  # its models do


def test_nested_compressors_keep_an_error_each():
    """Σ of what is received and what both keep is Σ of what was wanted."""
    values = torch.randn(4, 3, 40, generator=torch.Generator().manual_seed(0))
    peers, received = alone(3), torch.zeros(40)
    for number, told in enumerate(values, start=1):
        for peer in peers:
            peer.number = number
        in_lockstep(Compressed(Compressed(Tell({"w": told}), RandomK(0.5)), RandomK(0.5)), peers)
        received += peers[0].state["reply"]["w"]
    kept = [len(error) for name, error in peers[0].state.items() if name.startswith("error")]
    assert sorted(kept) == [20, 40]


# -- FedNova's τ_eff


@engines
def test_the_steps_of_fed_nova_are_not_compressed(on):
    """Keeping all of the direction is keeping everything; half of it sends half of it, and τ_eff as it is."""
    skew = {"shards": lk.data.Quantity(0.5, least=16), "peers": 4}
    plain, whole = (result(on, it, **skew) for it in (FedNova(epochs=1), Compressed(FedNova(epochs=1), TopK(1.0))))
    assert (parameters(plain) - parameters(whole)).abs().max() < 1e-5
    assert result(on, Compressed(FedNova(epochs=1), TopK(0.05)), **skew).final.loss > 0


# -- peers that start apart


def different():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return [nn.Linear(64, 10) for _ in range(3)]


@pytest.mark.parametrize(
    "wrapped",
    [Secure, Compressed, lambda it: Robust(it, TrimmedMean(0)), partial(Byzantine, attack=torch.clone)],
    ids=["secure", "compressed", "robust", "Byzantine"],
)
@pytest.mark.parametrize("inner", [LocalSGD(2), Drift(2)], ids=["LocalSGD", "own"])
@engines
def test_the_mean_of_peers_that_start_apart_is_that_of_their_parameters(on, inner, wrapped):
    models = different()
    first = result(on, wrapped(inner), models, peers=3, rounds=1, optimizer=STILL, shards=None)
    if inner == LocalSGD(2):
        mean = torch.stack([nn.utils.parameters_to_vector(model.parameters()) for model in models]).mean(0)
        torch.testing.assert_close(parameters(first), mean.expand(3, -1), atol=1e-6, rtol=0)
    later = parameters(result(on, wrapped(inner), models, peers=3, rounds=3))
    assert (later - later[0]).abs().max() < 1e-6


@engines
def test_the_median_of_peers_that_start_apart_is_that_of_their_parameters(on):
    models = different()
    run = result(on, Robust(LocalSGD(1), CoordinateMedian()), models, peers=3, rounds=1, optimizer=STILL)
    median = torch.stack([nn.utils.parameters_to_vector(model.parameters()) for model in models]).median(0).values
    torch.testing.assert_close(parameters(run), median.expand(3, -1), atol=1e-6, rtol=0)


@engines
def test_nothing_private_is_made_of_whole_parameters_of_peers_that_start_apart(on):
    with pytest.raises(SettingError, match=r"Private clips changes .* start from different weights.*one model for all"):
        result(on, Private(LocalSGD(2)), different(), peers=3, rounds=1)
    with pytest.raises(SettingError, match=r"Tell .* no updates but parameters.*peers that start from one model"):
        in_lockstep(Private(Tell({"w": torch.ones(1, 2)}, start={"w": torch.ones(2)})), alone(1, shared={}))


# -- both ways round

TWO = {
    "robust": Robust,
    "secure": Secure,
    "top-k": partial(Compressed, compressor=TopK(0.1)),
    "random-k": partial(Compressed, compressor=RandomK(0.1)),
    "PowerSGD": PowerSGD,
    "private": Private,
    "Byzantine": Byzantine,
}


def why_not(outer, inner):
    """The sentence with which one wrapper around another is refused, or None."""
    try:
        TWO[outer](TWO[inner](AllReduce()))
    except SettingError as error:
        return str(error)
    return None


@pytest.mark.parametrize("outer", TWO)
@pytest.mark.parametrize("inner", TWO)
def test_the_other_way_round_is_a_remedy_only_where_it_is_one(outer, inner):
    refused, turned = why_not(outer, inner), why_not(inner, outer)
    if refused:
        assert "use one of the two" in refused
        assert ("outside" in refused) == (turned is None)


# -- a process none of whose clients takes part


@pytest.mark.parametrize("run", [in_lockstep, in_a_stack])
def test_masks_among_neighbours_of_those_who_are_present_cancel(run):
    values = {"w": torch.arange(20.0).reshape(10, 2)}
    present = [7, 2, 4, 9]
    peers = alone(10, present) if run is in_lockstep else stacked(10, present)
    run(Secure(Tell(values), neighbours=2), peers)
    reply = (peers[0] if isinstance(peers, list) else peers).state["reply"]["w"]
    torch.testing.assert_close(reply.reshape(2), values["w"][present].mean(0), atol=1e-6, rtol=0)


def test_clients_of_one_worker_alone_are_masked_while_the_other_worker_waits(lab):
    """Three of six clients a round: some rounds have all of them on one worker, whose masks are among themselves."""
    algorithm, settings = Secure(FedAvg(1, participation=1 / 3), neighbours=2), {"peers": 6, "rounds": 12}
    on_workers, alone_here = (result(on, algorithm, **settings) for on in (lab, lk.Lockstep()))
    assert {row.peers for row in alone_here.rows} & {(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5)}
    assert (parameters(on_workers) - parameters(alone_here)).abs().max() < 1e-5
