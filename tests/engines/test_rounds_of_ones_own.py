"""A round of one's own that goes wrong is refused in one sentence that names it and the line, on every engine."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

import pytest
import torch

import labkit as lk
from labkit import tree
from labkit.algorithms import Robust
from labkit.errors import ExchangeError, SettingError
from labkit.exchange import CoordinateMedian, Gather, Mean
from tests.engines.experiments import result


class Own:
    """Local steps, and then what its children do."""

    every = 1

    def start(self, peer, batches):
        peer.step(peer.loss(next(batches)))


@dataclass(frozen=True)
class Scalar(Own):
    def round(self, peer, batches):
        mean = yield Mean(peer.params)
        peer.params = tree.map(torch.mean, mean)  # here


@dataclass(frozen=True)
class Transposed(Own):
    def round(self, peer, batches):
        mean = yield Mean(peer.params)
        peer.params = {name: p.transpose(-1, -2) if name.endswith("weight") else p for name, p in mean.items()}  # here


@dataclass(frozen=True)
class OneName(Own):
    def round(self, peer, batches):
        mean = yield Mean(peer.params)
        peer.params = {"0.weight": mean["0.weight"]}  # here


@dataclass(frozen=True)
class Prefixed(Own):
    def round(self, peer, batches):
        mean = yield Mean(peer.params)
        peer.params = {**mean, "module.0.bias": mean["0.bias"]}  # here


@dataclass(frozen=True)
class Vector(Own):
    def round(self, peer, batches):
        mean = yield Mean(tree.flatten(peer.params, lead=peer.ids.dim()))
        peer.params = mean  # here


@dataclass(frozen=True)
class NormOnly(Own):
    def round(self, peer, batches):
        gradients = peer.gradients(peer.loss(next(batches)))
        peer.apply({name: g.norm() for name, g in gradients.items()})  # here
        yield from ()


@dataclass(frozen=True)
class Forgetful(Own):
    def round(self, peer, batches):
        gradients = yield Mean(peer.gradients(peer.loss(next(batches))))
        del gradients["0.bias"]
        peer.apply(gradients)  # here


@dataclass(frozen=True)
class Numbers(Own):
    def round(self, peer, batches):
        yield Mean(peer.params)
        peer.apply(dict.fromkeys(peer.params, 0.0))  # here


@dataclass(frozen=True)
class Chatty(Own):
    def round(self, peer, batches):
        yield Mean(peer.params)
        peer.log("norm", torch.ones(3, 7))  # here


@dataclass(frozen=True)
class Nameless(Own):
    def round(self, peer, batches):
        yield Mean(peer.params)
        peer.log(0.5, "norm")  # here


@dataclass(frozen=True)
class NoYield(Own):
    def round(self, peer, batches):  # here
        self.start(peer, batches)


@dataclass(frozen=True)
class Listed(Own):
    def round(self, peer, batches):  # here
        return [Mean(peer.params)]


@dataclass(frozen=True)
class NoMessage(Own):
    def round(self, peer, batches):
        self.start(peer, batches)
        yield peer.params  # here


@dataclass(frozen=True)
class Bare(Own):
    def round(self, peer, batches):
        self.start(peer, batches)
        yield  # here


@dataclass(frozen=True)
class Split(Own):
    def round(self, peer, batches):
        if int(peer.ids.reshape(-1)[0]) == 0:
            yield Mean(peer.params)  # here
        else:
            yield Gather(peer.params)


@dataclass(frozen=True)
class Lonely(Own):
    def round(self, peer):  # here
        yield Mean(peer.params)


@dataclass(frozen=True)
class Doubled(Own):
    def round(self, peer, batches):
        peer.log("test_loss", 1.0)  # here
        yield Mean(peer.params)


@dataclass(frozen=True)
class Early(Own):
    def round(self, peer, batches):
        if int(peer.ids.reshape(-1)[0]) == 0:
            yield Mean(peer.params)  # here


SHAPES = [
    (Scalar(), r"peer\.params a tensor of shape \[\] for '0\.weight', where the parameter has .*32, 64\]"),
    (Transposed(), r"peer\.params a tensor of shape \[(1, )?64, 32\] for '0\.weight'"),
    (OneName(), r"peer\.params a dict without '0\.bias', '2\.weight', '2\.bias'"),
    (Prefixed(), r"peer\.params a dict with 'module\.0\.bias', which no parameter is called"),
    (Vector(), r"peer\.params a Tensor: give a dict"),
    (NormOnly(), r"peer\.apply a tensor of shape \[\] for '0\.weight'"),
    (Forgetful(), r"peer\.apply a dict without '0\.bias'"),
    (Numbers(), r"peer\.apply a float for '0\.weight'"),
    (Chatty(), r"logs a tensor of shape \[3, 7\] as 'norm'"),
    (Nameless(), r"logs under the name 0\.5"),
    (Doubled(), r"logs 'test_loss', which rows have already"),
]
MESSAGES = [
    (Lonely(), r"does not take a peer and its batches"),
    (NoYield(), r"is no generator, and gave nothing"),
    (Listed(), r"is no generator, and gave a list"),
    (NoMessage(), r"yields a dict, which is no message"),
    (Bare(), r"yields nothing, which is no message"),
]
APART = [  # what only some engines can see, for peers of one stack run one generator
    (Split(), r"yields Mean; Split\.round \(line \d+\) yields Gather"),
    (Early(), r"yields Mean; Early\.round has ended"),
]


def line(algorithm):
    lines, first = inspect.getsourcelines(type(algorithm))
    return first + next(at for at, text in enumerate(lines) if text.rstrip().endswith("# here"))


def refused(error, algorithm, says, on, **settings):
    with pytest.raises(error) as caught:
        result(on, algorithm, rounds=2, **settings)
    text = str(caught.value)
    assert re.search(says, text) and f"{type(algorithm).__name__}.round (line {line(algorithm)})" in text
    assert "\n" not in text and text.endswith(".") and len(text) < 400


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
@pytest.mark.parametrize(("algorithm", "says"), SHAPES, ids=lambda it: type(it).__name__)
def test_values_of_another_shape_or_name_are_refused_and_not_spread(on, algorithm, says):
    refused(SettingError, algorithm, says, on)


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
@pytest.mark.parametrize(("algorithm", "says"), MESSAGES, ids=lambda it: type(it).__name__)
def test_a_round_that_yields_no_message_is_refused(on, algorithm, says):
    refused(ExchangeError, algorithm, says, on)


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator(block=1)], ids=["lockstep", "stacked one by one"])
@pytest.mark.parametrize(("algorithm", "says"), APART, ids=lambda it: type(it).__name__)
def test_peers_that_yield_different_messages_are_told_where(on, algorithm, says):
    refused(ExchangeError, algorithm, says, on)


@pytest.mark.parametrize(
    ("algorithm", "says", "error"),
    [
        (*SHAPES[0], SettingError),
        (*SHAPES[6], SettingError),
        (*MESSAGES[0], ExchangeError),
        (*MESSAGES[2], ExchangeError),
    ],
    ids=lambda it: type(it).__name__ if isinstance(it, Own) else "",
)
def test_real_workers_say_the_same(lab, algorithm, says, error):
    refused(error, algorithm, says, lab)


def test_an_asynchronous_round_and_a_wrapped_one_are_named_too():
    @dataclass(frozen=True)
    class Waiting(Own):
        asynchronous = True

        def round(self, peer, batches):
            self.start(peer, batches)

    for on in (lk.Lockstep(), lk.Simulator()):
        with pytest.raises(ExchangeError, match=r"^Waiting\.round \(line \d+\) is no generator"):
            result(on, Waiting(), rounds=2)
        with pytest.raises(SettingError, match=r"^Scalar\.round \(line \d+\) gives peer\.params"):
            result(on, Robust(Scalar(), CoordinateMedian()), rounds=2)


def test_what_is_the_same_for_all_stacked_peers_may_be_assigned():
    @dataclass(frozen=True)
    class Mine(Own):
        def round(self, peer, batches):
            self.start(peer, batches)
            mean = yield Mean(peer.params)  # [1, …] where peers are stacked
            peer.params = dict(reversed(mean.items()))

    assert result(lk.Simulator(), Mine(), rounds=2).rows[-1].round == 2
