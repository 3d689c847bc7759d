"""Wrappers: the three engines agree, settings pass through, limits are the plain algorithm, nonsense is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import labkit as lk
from labkit.algorithms import (
    AllReduce,
    Byzantine,
    Compressed,
    FedDF,
    FedNova,
    Independent,
    LocalSGD,
    ParameterServer,
    PowerSGD,
    Private,
    Robust,
    Secure,
    Wrapper,
)
from labkit.errors import DivergenceError, ExchangeError, SettingError
from labkit.exchange import (
    QSGD,
    CoordinateMedian,
    Gather,
    Half,
    Krum,
    Mean,
    ModularSum,
    RandomK,
    RobustMean,
    Sign,
    TopK,
    TrimmedMean,
)
from tests.algorithms.hand import Drift, Tell, alone, in_a_stack, in_lockstep, stacked
from tests.engines.experiments import difference, result

TOLERANCE = 1e-5
WRAPPERS = {
    "top-k": lambda it: Compressed(it, TopK(0.05)),
    "random-k": lambda it: Compressed(it, RandomK(0.1)),
    "unbiased random-k": lambda it: Compressed(it, RandomK(0.5, unbiased=True)),
    "sign": lambda it: Compressed(it, Sign()),
    "QSGD": lambda it: Compressed(it, QSGD(127)),
    "half": lambda it: Compressed(it, Half()),
    "PowerSGD": PowerSGD,
    "median": lambda it: Robust(it, CoordinateMedian()),
    "trimmed": lambda it: Robust(it, TrimmedMean(1)),
    "Krum": lambda it: Robust(it, Krum(0)),
    "private": lambda it: Private(it, clip=1.0, noise=0.1),
    "secure": Secure,
    "Byzantine": lambda it: Byzantine(it, peers=(1,), attack="noise", scale=0.1),
    "secure, private, Byzantine": lambda it: Secure(Private(Byzantine(it, peers=(0,)), clip=0.5, noise=0.1)),
    "robust, Byzantine": lambda it: Robust(Byzantine(it, peers=(0,)), Krum(0, keep=2)),
    "secure, random-k": lambda it: Secure(Compressed(it, RandomK(0.1))),
}


# -- engines


@pytest.mark.parametrize("inner", [AllReduce(), Drift(), Drift(participation=0.6)], ids=repr)
@pytest.mark.parametrize("wrapped", WRAPPERS.values(), ids=WRAPPERS)
def test_lockstep_and_stacked_agree(wrapped, inner):
    runs = [result(engine, wrapped(inner), peers=5, rounds=4) for engine in (lk.Lockstep(), lk.Simulator())]
    assert difference(*runs) < TOLERANCE
    assert runs[0].bytes == pytest.approx(runs[1].bytes)


@pytest.mark.parametrize("wrapped", WRAPPERS.values(), ids=WRAPPERS)
def test_cluster_and_lockstep_agree_with_uneven_blocks_of_peers_on_the_workers(lab, wrapped):
    runs = [result(on, wrapped(Drift()), peers=5, rounds=3) for on in (lab, lk.Lockstep())]
    assert difference(*runs) < TOLERANCE


@pytest.mark.parametrize(
    "kind", ["top-k", "random-k", "sign", "QSGD", "half", "PowerSGD", "private", "secure", "Byzantine"]
)
def test_cluster_sends_the_bytes_of_the_formula_with_one_peer_on_each_worker(lab, kind):
    runs = [result(on, WRAPPERS[kind](AllReduce()), peers=2, rounds=3) for on in (lab, lk.Lockstep())]
    assert difference(*runs) < TOLERANCE
    assert (runs[0].ledger, runs[1].ledger) == ("measured", "formula")
    assert runs[0].bytes == pytest.approx(runs[1].bytes)


# -- limits


@pytest.mark.parametrize("inner", [AllReduce(), Drift()], ids=repr)
@pytest.mark.parametrize(
    "limit",
    [
        lambda it: Compressed(it, TopK(1.0)),
        lambda it: Compressed(it, RandomK(1.0)),
        lambda it: Compressed(it, TopK(1.0), feedback=False),
        Secure,
        lambda it: Secure(it, neighbours=2),
    ],
    ids=["all of top-k", "all of random-k", "without feedback", "secure", "secure among neighbours"],
)
def test_in_the_limit_a_wrapped_algorithm_is_the_plain_one(inner, limit):
    plain, wrapped = (result(lk.Simulator(), it, peers=5) for it in (inner, limit(inner)))
    assert difference(plain, wrapped) < TOLERANCE


@pytest.mark.parametrize(
    "limit",
    [lambda it: Robust(it, TrimmedMean(0)), lambda it: Private(it, clip=1e6, noise=0.0)],
    ids=["trimmed of nothing", "neither clipped nor noisy"],
)
def test_in_the_limit_rules_that_weigh_alike_are_the_mean_of_peers_that_weigh_alike(limit):
    plain, wrapped = (result(lk.Simulator(), it, peers=5) for it in (AllReduce(), limit(AllReduce())))
    assert difference(plain, wrapped) < TOLERANCE


# -- nesting and settings


@dataclass(frozen=True)
class Everything:
    """An algorithm with every setting there is."""

    every: int = 3
    participation: float = 0.5
    starts_apart: bool = True
    same_batches: bool = True

    def round(self, peer, batches):
        peer.state["told"] = yield Gather(peer.ids)
        peer.state["mean"] = yield Mean(peer.ids.double())

    def predict(self, peer, inputs):
        return 7

    def check(self, peers):
        raise SettingError(f"not with {peers}")


@pytest.mark.parametrize("wrapped", WRAPPERS.values(), ids=WRAPPERS)
def test_the_inner_algorithms_settings_are_the_wrappers(wrapped):
    outer = wrapped(Everything())
    assert isinstance(outer, Wrapper)
    assert (outer.every, outer.participation, outer.starts_apart, outer.same_batches) == (3, 0.5, True, True)
    assert outer.predict(None, None) == 7
    with pytest.raises(SettingError, match="not with 9"):
        outer.check(9)
    assert wrapped(AllReduce()).predict is None and wrapped(AllReduce()).participation is None


def test_messages_that_are_no_means_pass_as_they_are():
    peers = alone(3)
    gathered, summed = in_lockstep(Secure(Everything()), peers)
    assert isinstance(gathered[0], Gather) and isinstance(summed[0], ModularSum)
    assert peers[0].state["told"].tolist() == [0, 1, 2]
    assert peers[0].state["mean"].item() == pytest.approx(1.0, abs=1e-6)


def test_the_innermost_wrapper_acts_first():
    values = {"w": torch.tensor([[1.0], [2.0], [4.0]])}
    (met,) = in_lockstep(Robust(Byzantine(Tell(values), peers=(2,), scale=10.0)), alone(3))
    assert all(isinstance(message, RobustMean) for message in met)
    assert [message.x.item() for message in met] == [1.0, 2.0, -40.0]


@pytest.mark.parametrize("wrapped", WRAPPERS.values(), ids=WRAPPERS)
def test_the_reply_has_the_shapes_and_types_of_what_was_asked_for(wrapped):
    values = {"w": torch.randn(4, 5, 6), "b": torch.randn(4, dtype=torch.float64)}
    start = {"w": torch.ones(5, 6), "b": torch.tensor(1.0, dtype=torch.float64)}
    for begun in (None, start):
        peers, stack = alone(4), stacked(4)
        in_lockstep(wrapped(Tell(values, start=begun)), peers)
        in_a_stack(wrapped(Tell(values, start=begun)), stack)
        for name, leaf in values.items():
            one, together = peers[0].state["reply"][name], stack.state["reply"][name]
            assert (one.shape, one.dtype) == (leaf.shape[1:], leaf.dtype)
            assert (together.shape, together.dtype) == ((1, *leaf.shape[1:]), leaf.dtype)


def test_a_wrapper_ends_the_inner_round_when_its_own_is_ended():
    ended = []

    class Endless:
        def round(self, peer, batches):
            try:
                while True:
                    yield Mean(torch.zeros(1))
            finally:
                ended.append(True)

    round = Secure(Endless()).round(alone(1)[0], iter(()))
    next(round)
    round.close()
    assert ended == [True]


# -- what is refused


@pytest.mark.parametrize(
    ("nested", "sentence"),
    [
        (lambda: Robust(Compressed(AllReduce(), Sign())), "Robust finds no mean around Compressed"),
        (lambda: Private(Secure(AllReduce())), "Private finds no mean around Secure.*put Secure outside"),
        (lambda: Byzantine(Robust(AllReduce())), "Byzantine finds no mean around Robust.*put Robust outside"),
        (
            lambda: Compressed(Private(AllReduce()), RandomK()),
            "Compressed around Private would undo.*put Private outside",
        ),
        (lambda: Compressed(Private(AllReduce())), "Compressed around Private would undo it.*: use one of the two"),
        (lambda: Robust(Private(AllReduce())), "Robust around Private would undo it"),
    ],
)
def test_wrappers_that_undo_each_other_are_refused_where_they_are_made(nested, sentence):
    with pytest.raises(SettingError, match=sentence):
        nested()


@pytest.mark.parametrize("inner", [AllReduce, None, "FedAvg"])
def test_what_is_no_algorithm_is_not_wrapped(inner):
    with pytest.raises(SettingError, match=r"Secure wraps an algorithm, and .* is none: give one such as AllReduce"):
        Secure(inner)


def test_an_algorithm_that_asks_for_no_mean_is_refused_naming_what_it_sends():
    @dataclass(frozen=True)
    class Talk:
        def round(self, peer, batches):
            yield Gather(peer.ids)

    with pytest.raises(SettingError, match=r"Robust works on means, and .*Talk.* exchanges only Gather: wrap"):
        in_lockstep(Robust(Talk()), alone(3))


def test_an_algorithm_that_sends_nothing_has_nothing_to_wrap_and_nothing_to_refuse():
    assert result(lk.Lockstep(), Secure(Independent()), rounds=1).bytes == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", ["top-k", "sign", "QSGD", "half", "private", "secure"])
def test_numbers_that_are_none_are_refused_naming_the_peer(kind, value):
    values = {"w": torch.ones(4, 30)}
    values["w"][2, 7] = value
    for run, peers in ((in_lockstep, alone(4)), (in_a_stack, stacked(4))):
        with pytest.raises(DivergenceError, match="Peer 2 has NaN or infinite numbers to send in round 1: lower"):
            run(WRAPPERS[kind](Tell(values)), peers)


@pytest.mark.parametrize("kind", ["top-k", "median", "private", "secure", "Byzantine"])
@pytest.mark.parametrize("values", [{}, {"w": torch.ones(4, 0)}], ids=["no tensors", "an empty one"])
def test_a_mean_of_no_numbers_is_refused(kind, values):
    with pytest.raises(ExchangeError, match="mean is asked of no numbers at all: send"):
        in_lockstep(WRAPPERS[kind](Tell(values)), alone(4))


def test_training_refuses_too_few_peers_for_a_rule_before_anything_runs():
    with pytest.raises(SettingError, match=r"Krum.* is good for 5 peers or more, and 4 take part"):
        result(lk.Simulator(), Robust(LocalSGD(), Krum(1)), peers=4)
    with pytest.raises(SettingError, match=r"TrimmedMean.* is good for 5 peers or more, and 3 take part"):
        result(lk.Simulator(), Robust(Drift(participation=0.3), TrimmedMean(2)), peers=10)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Private(FedNova()), "FedNova also exchanges means that are no updates"),
        (lambda: Private(Byzantine(FedDF())), "FedDF also exchanges means that are no updates"),
        (lambda: Private(AllReduce(), clip="a"), "clip is 'a'; give a number"),
        (lambda: Secure(ParameterServer()), "ParameterServer do not wait for each other"),
        (lambda: Byzantine(AllReduce(), peers=3), "peers=3 names no peers"),
        (lambda: Byzantine(AllReduce(), scale="x"), "scale is 'x'"),
    ],
    ids=["nova", "df", "clip", "asynchronous", "no tuple", "scale"],
)
def test_what_cannot_be_wrapped_or_set_is_refused_when_it_is_made(make, says):
    with pytest.raises(SettingError, match=says):
        make()


def test_byzantine_peers_may_be_listed_as_one_likes():
    assert Byzantine(AllReduce(), peers=[0, 2]) == Byzantine(AllReduce(), peers=(0, 2))
    assert hash(Byzantine(AllReduce(), peers=[0]))
