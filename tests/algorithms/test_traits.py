"""What an algorithm says of itself: read once, refused by name where it is wrong, and passed through wrappers."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import labkit as lk
from labkit import algorithms
from labkit.algorithms import (
    AllReduce,
    Byzantine,
    Compressed,
    Ensemble,
    FedAvg,
    FedNova,
    Independent,
    LocalSGD,
    Private,
    Secure,
    Wrapper,
)
from labkit.algorithms.traits import TRAITS, Traits
from labkit.errors import SettingError
from labkit.exchange import TopK
from labkit.tasks.sync import ASP, SSP

# What the built-in ones cannot do without.
GIVEN: dict[str, tuple[Any, ...]] = {
    "Byzantine": (AllReduce(),),
    "Compressed": (AllReduce(), TopK(0.1)),
    "Distillation": (torch.nn.Linear(2, 2),),
    "Measured": (AllReduce(),),
    "PowerSGD": (AllReduce(),),
    "Private": (AllReduce(),),
    "Robust": (AllReduce(),),
    "Secure": (AllReduce(),),
}
BUILT_IN = [
    name
    for name in algorithms.__all__
    if inspect.isclass(getattr(algorithms, name)) and name not in ("Algorithm", "Batch", "Peer", "Round", "Wrapper")
]
HARMLESS = (
    *("every_n", "every_step", "epoch_count", "epoch_size", "policies", "momentum", "part", "evergreen", "checked"),
    *(
        "very",
        "synchronous",
        "asynchronously",
        "epochs_",
        "server_lr",
        "serve",
        "servers",
        "predicted",
        "prediction",
        "asynchrony",
        "same",
        "starts",
        "participants",
    ),
    *("rate", "beta", "buffer", "warmup", "topology", "weight", "temperature", "police", "batches", "peers"),
)
MISSPELT = {
    "participaton": "participation",
    "partcipation": "participation",
    "Participation": "participation",
    "evrey": "every",
    "everry": "every",
    "epoch": "epochs",
    "start_apart": "starts_apart",
    "startsApart": "starts_apart",
    "same_batch": "same_batches",
    "asyncronous": "asynchronous",
    "assynchronus": "asynchronous",
    "mean_of": "means_of",
}


def algorithm(**members: Any) -> Any:
    """One of somebody's own, with these attributes of its class."""
    return type("Mine", (), {"round": lambda self, peer, batches: iter(()), **members})()


def refused(it: Any, says: str) -> None:
    with pytest.raises(SettingError, match=says) as caught:
        Traits.of(it)
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith(".")


@pytest.mark.parametrize("name", BUILT_IN)
def test_nothing_that_a_built_in_algorithm_has_is_taken_for_a_misspelt_trait(name: str) -> None:
    built = getattr(algorithms, name)(*GIVEN.get(name, ()))
    traits = Traits.of(built)
    for trait in TRAITS:
        if trait not in ("policy", "check"):
            assert getattr(traits, trait) == getattr(built, trait, getattr(Traits, trait))


def test_an_algorithm_that_says_nothing_has_the_defaults() -> None:
    assert Traits.of(algorithm()) == Traits() == Traits.of(Independent())
    assert Traits.of(algorithm(participation=None, predict=None, check=None, every=None)) == Traits()


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_names_are_nobody_elses_business(name: str) -> None:
    assert Traits.of(algorithm(**{name: 3})) == Traits()
    assert Traits.of(algorithm(**{name: lambda self: 3})) == Traits()


@pytest.mark.parametrize(("name", "trait"), MISSPELT.items())
def test_a_near_miss_is_refused_by_name(name: str, trait: str) -> None:
    says = rf"Mine\.{name} is no trait.*looks like '{trait}'"
    refused(algorithm(**{name: 0.5}), says)
    of_instance = algorithm()
    setattr(of_instance, name, 0.5)
    refused(of_instance, says)
    field = dataclasses.make_dataclass("Mine", [(name, float)], bases=(type(algorithm()),))
    refused(field(0.5), says)
    refused(algorithm(**{name: property(lambda self: 1 / 0)}), says)  # whose code does not run for that
    assert Traits.of(algorithm(**{name: 0.5, trait: getattr(Traits, trait)})) == Traits()  # it has the trait too


def test_a_misspelt_method_is_refused_and_a_value_of_that_name_is_not() -> None:
    refused(algorithm(predicts=lambda self, peer, inputs: inputs), "looks like 'predict'")
    refused(algorithm(chekc=lambda self, peers: None), "looks like 'check'")
    refused(algorithm(chekc=classmethod(lambda cls, peers: None)), "looks like 'check'")
    assert Traits.of(algorithm(chekc=3)) == Traits()
    serve = {"serve": lambda self, weights, optimizer, peers: None, "polcy": SSP(1)}
    assert Traits.of(algorithm(**serve)) == Traits()
    refused(algorithm(asynchronous=True, policy=ASP(), serve=serve["serve"]), "looks like 'server'")
    refused(algorithm(asynchronous=True, polcy=SSP(1)), "looks like 'policy'")


def test_a_torch_module_may_be_an_algorithm() -> None:
    class Mine(torch.nn.Module):
        def round(self, peer: Any, batches: Any) -> Any:
            yield from ()

    assert Traits.of(Mine()) == Traits()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("every", 0, r"Mine\.every is 0; give at least 1"),
        ("every", 2.5, "every is 2.5, which is no whole number"),
        ("every", True, "every is True, which is no whole number"),
        ("epochs", "two", "epochs is 'two', which is no whole number"),
        ("participation", 0, "participation is 0; give a number above 0"),
        ("participation", 1.5, "participation is 1.5; .*up to 1"),
        ("participation", "all", "participation is 'all'"),
        ("starts_apart", "no", r"Mine\.starts_apart is 'no'; give True or False"),
        ("same_batches", 1, "same_batches is 1; give True"),
        ("asynchronous", "yes", "asynchronous is 'yes'"),
        ("means_of", 0, "means_of is 0; give labkit.exchange.Kinds"),
        ("means_of", ("gradients",), r"means_of is \('gradients',\)"),
        ("predict", True, r"Mine\.predict is True; give a method predict"),
        ("check", 4, "check is 4; give a method"),
    ],
)
def test_a_value_that_a_trait_cannot_have_is_refused_by_name(name: str, value: Any, says: str) -> None:
    refused(algorithm(**{name: value}), says)


def test_policy_and_server_are_read_of_asynchronous_algorithms_only() -> None:
    assert Traits.of(algorithm(policy="greedy", server="localhost")) == Traits()
    refused(algorithm(asynchronous=True, policy="greedy"), "policy is 'greedy'; give lk.BSP")
    refused(algorithm(asynchronous=True, server="localhost"), "server is 'localhost'; give a method")
    assert Traits.of(algorithm(asynchronous=True, policy=SSP(3))).policy == SSP(3)
    assert Traits.of(algorithm(asynchronous=True, server=lambda *_: None)).central
    assert not Traits.of(algorithm(asynchronous=True)).central


def test_wrappers_pass_traits_through() -> None:
    inner = FedAvg(every=3, epochs=2, participation=0.5)
    nested = Secure(Private(inner))
    assert Traits.of(nested).every == 3
    assert (Traits.of(nested).epochs, Traits.of(nested).participation) == (2, 0.5)
    twice = Compressed(Byzantine(Ensemble(every=4)), TopK(0.5))
    traits = Traits.of(twice)
    assert (traits.every, traits.starts_apart, twice.every, twice.epochs) == (4, True, 4, None)
    assert traits.predict is not None and twice.predict.__self__ == Ensemble(every=4)
    assert pickle.loads(pickle.dumps(twice)) == twice
    with pytest.raises(AttributeError, match="has no attribute 'evry'"):
        twice.evry  # noqa: B018
    with pytest.raises(SettingError, match="no updates"):
        Private(Byzantine(FedNova()))


def test_a_wrapper_of_somebodys_own_is_read_too() -> None:
    @dataclass(frozen=True)
    class Mine(Wrapper):
        participaton: ClassVar[float] = 0.5

        def exchange(self, mean: Any, peer: Any, index: int) -> Any:
            yield mean

    refused(Mine(LocalSGD()), "looks like 'participation'")
    with pytest.raises(SettingError, match="looks like 'every'"):
        Compressed(algorithm(evrey=3), TopK(0.1))


def test_check_is_asked_through_wrappers() -> None:
    odd = algorithm(check=lambda self, peers: (_ for _ in ()).throw(SettingError(f"{peers} are too few.")))
    with pytest.raises(SettingError, match="3 are too few"):
        Traits.of(Compressed(odd, TopK(0.1))).check(3)
    Traits.of(Compressed(LocalSGD(), TopK(0.1))).check(3)


def test_traits_are_read_when_the_run_is_planned() -> None:
    digits = lk.data.load("digits")
    with pytest.raises(SettingError, match=r"Mine\.participaton .*'participation'"):
        lk.train(torch.nn.Linear(64, 10), digits, algorithm(participaton=0.5))
    with pytest.raises(SettingError, match=r"'own': Mine\.participaton .*'participation'"):
        lk.compare({"own": algorithm(participaton=0.5)}, torch.nn.Linear(64, 10), digits)
