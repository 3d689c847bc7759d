"""Every wrapper around every algorithm, and around every other wrapper: made and right, or refused with a remedy."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from itertools import product

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import (
    EASGD,
    SCAFFOLD,
    AllReduce,
    Byzantine,
    Compressed,
    DiLoCo,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDF,
    FedDyn,
    FedMD,
    FedNova,
    FedProx,
    FedYogi,
    LocalSGD,
    PostLocalSGD,
    PowerSGD,
    Private,
    Robust,
    Secure,
)
from labkit.errors import SettingError
from labkit.exchange import QSGD, CoordinateMedian, Half, RandomK, Sign, TopK, TrimmedMean
from tests.engines.experiments import difference

DIGITS = lk.data.load("digits")
EVEN = replace(
    DIGITS, x=DIGITS.x[:256], y=DIGITS.y[:256], test_x=DIGITS.test_x[:32], test_y=DIGITS.test_y[:32], source=None
)

ALGORITHMS = {
    type(it).__name__: it
    for it in (
        *(AllReduce(), LocalSGD(2), PostLocalSGD(2, warmup=1), DiLoCo(2), EASGD(2), FedAvg(2), FedProx(2), FedAvgM(2)),
        *(FedAdam(2), FedYogi(2), FedNova(2), FedDyn(2), SCAFFOLD(2), FedDF(2, public=1), FedMD(1, public=1, warmup=0)),
    )
}
ALIKE = {  # settings with which a wrapper changes nothing, where all peers weigh alike
    "top-k": lambda it: Compressed(it, TopK(1.0)),
    "random-k": lambda it: Compressed(it, RandomK(1.0)),
    "PowerSGD": lambda it: PowerSGD(it, rank=64),
    "secure": Secure,
    "robust": lambda it: Robust(it, TrimmedMean(0)),
    "private": lambda it: Private(it, clip=1e6, noise=0.0),
    "Byzantine": lambda it: Byzantine(it, attack=torch.clone),
}
CHANGING = {
    "top-k": lambda it: Compressed(it, TopK(0.1)),
    "random-k": lambda it: Compressed(it, RandomK(0.1)),
    "sign": lambda it: Compressed(it, Sign()),
    "QSGD": lambda it: Compressed(it, QSGD()),
    "half": lambda it: Compressed(it, Half("bf16")),
    "PowerSGD": lambda it: PowerSGD(it, rank=1),
    "secure": lambda it: Secure(it, neighbours=2),
    "robust": lambda it: Robust(it, CoordinateMedian()),
    "private": lambda it: Private(it, clip=0.1, noise=0.1),
    "Byzantine": lambda it: Byzantine(it, peers=(1,), scale=2.0),
}
UNCLIPPABLE = {"FedNova", "FedDF", "FedMD"}  # which also exchange numbers or predictions


def trained(algorithm, on=None):
    settings = {"peers": 4, "rounds": 2, "batch_size": 8, "seed": 3, "public": DIGITS.x[256:288]}
    return lk.train(lambda: nn.Linear(64, 10), EVEN, algorithm, on=on, **settings).result(60)


@cache
def plain(name):
    return trained(ALGORITHMS[name])


def made(wrapper, inner):
    """The wrapped algorithm, or the sentence with which it is refused."""
    try:
        return wrapper(inner)
    except SettingError as error:
        return str(error)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("kind", ALIKE)
def test_a_wrapper_that_changes_nothing_changes_nothing(kind, name):
    algorithm = made(ALIKE[kind], ALGORITHMS[name])
    if kind == "private" and name in UNCLIPPABLE:
        assert f"{name} also exchanges means that are no updates" in algorithm
        return
    assert difference(plain(name), trained(algorithm)) < 1e-5


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("kind", CHANGING)
def test_the_reference_and_the_stack_agree_on_every_wrapped_algorithm(kind, name):
    algorithm = made(CHANGING[kind], ALGORITHMS[name])
    if isinstance(algorithm, str):
        assert kind == "private" and name in UNCLIPPABLE
        return
    runs = [trained(algorithm, on) for on in (lk.Lockstep(), lk.Simulator())]
    # Where rounding tells two sums apart, one may fall on the other side of a number of bf16's 8 bits.
    assert difference(*runs) < (1e-4 if kind == "half" else 1e-5)
    assert runs[0].bytes == pytest.approx(runs[1].bytes)


@pytest.mark.parametrize(("outer", "inner"), [*product(ALIKE, ALIKE)])
def test_two_wrappers_that_change_nothing_change_nothing_in_either_order_that_is_made(outer, inner):
    algorithm = made(ALIKE[outer], made(ALIKE[inner], ALGORITHMS["FedAvg"]))
    if not isinstance(algorithm, str):
        assert difference(plain("FedAvg"), trained(algorithm)) < 1e-5
        return
    turned = made(ALIKE[inner], made(ALIKE[outer], ALGORITHMS["FedAvg"]))
    assert "use one of the two" in algorithm
    assert ("outside" in algorithm) == (not isinstance(turned, str))


@pytest.mark.parametrize(("outer", "inner"), [*product(CHANGING, CHANGING)])
def test_the_reference_and_the_stack_agree_on_two_wrappers(outer, inner):
    algorithm = made(CHANGING[outer], made(CHANGING[inner], FedAvg(2, participation=0.75)))
    if not isinstance(algorithm, str):
        runs = [trained(algorithm, on) for on in (lk.Lockstep(), lk.Simulator())]
        assert difference(*runs) < 1e-5


# -- limit identities of optimisers that remember, and of parameters without part in the loss


class Unused(nn.Linear):
    """Has a parameter that no output depends on."""

    def __init__(self):
        super().__init__(64, 10)
        self.unused = nn.Parameter(torch.ones(1))


HEAVY = partial(torch.optim.SGD, lr=0.05, weight_decay=0.1, momentum=0.9)
PAIRS = {
    "local SGD, every step": (AllReduce(), PostLocalSGD(1, warmup=9)),
    "proximal, without": (FedProx(2, mu=0.0), FedAvg(2)),
    "dynamic, without": (FedDyn(2, alpha=1e-7), FedAvg(2)),
    "elastic, without": (EASGD(2, alpha=0.0), lk.algorithms.Independent(2)),
    "server momentum, without": (FedAvgM(2, momentum=0.0), FedAvg(2)),
    "controls, at first": (SCAFFOLD(2), FedAvg(2)),
}


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_limits_hold_with_decay_and_momentum_and_what_has_no_part_in_the_loss_stands_still(on, pair):
    rounds = 1 if isinstance(pair[0], SCAFFOLD | FedDyn) else 3
    settings = {"peers": 2, "rounds": rounds, "batch_size": 8, "optimizer": HEAVY, "on": on}
    one, other = (lk.train(Unused, EVEN, it, **settings).result(60).models[0] for it in pair)
    assert one.unused.item() == other.unused.item() == 1.0
    if isinstance(pair[0], FedDyn):
        return  # whose server goes twice as far in its first round
    torch.testing.assert_close(one.weight, other.weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
def test_local_sgd_every_step_is_all_reduce_with_decay(on):
    """With momentum too, for the mean of velocities is the velocity of the mean."""
    settings = {"peers": 2, "rounds": 5, "batch_size": 8, "optimizer": HEAVY, "on": on}
    one, other = (lk.train(Unused, EVEN, it, **settings).result(60).models[0] for it in (LocalSGD(1), AllReduce()))
    torch.testing.assert_close(one.weight, other.weight, atol=1e-5, rtol=0)
    assert one.unused.item() == other.unused.item() == 1.0
