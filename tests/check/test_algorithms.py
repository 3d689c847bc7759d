"""An algorithm of one's own is put through three engines; what does not hold is one sentence, and the rest a report."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import labkit as lk
from labkit import tree
from labkit.algorithms import Gossip, LocalSGD, ParameterServer
from labkit.check.algorithms import AlgorithmReport
from labkit.errors import CheckFailed, LabkitError
from labkit.exchange import Mean, Transfer


def checked(mine, **settings):
    return lk.check.algorithm(mine, lambda: nn.Linear(64, 10), **{"rounds": 2, **settings})


def found(report):
    return {it.check: (it.verdict, it.said) for it in report.findings}


@dataclass(frozen=True)
class Adaptive:
    """More steps in each round."""

    def round(self, peer, batches):
        for _ in range(2**peer.number):
            peer.step(peer.loss(next(batches)))
        peer.params = yield Mean(peer.params)


@dataclass(frozen=True)
class Slower:
    """Steps by half of the gradient, which one peer alone does too."""

    def round(self, peer, batches):
        mean = yield Mean(peer.gradients(peer.loss(next(batches))))
        peer.apply(tree.map(lambda g: g / 2, mean))


@dataclass(frozen=True)
class Mixing:
    """Scales by a norm of everything, in which stacked peers are mixed."""

    def round(self, peer, batches):
        gradients = peer.gradients(peer.loss(next(batches)))
        peer.apply(tree.map(lambda g: g / (1 + g.norm()), gradients))
        yield from ()


@dataclass(frozen=True)
class Rolling:
    """Draws numbers that no seed decides."""

    def round(self, peer, batches):
        peer.step(peer.loss(next(batches)) * random.SystemRandom().random())
        yield from ()


@dataclass(frozen=True, eq=False)
class Cheap(Mean):
    """A mean that says it costs half."""

    def bytes(self, peers):
        return super().bytes(peers) / 2


@dataclass(frozen=True, eq=False)
class Wandering(Mean):
    """A mean whose transfers are not those of its bytes."""

    def transfers(self, peers):
        return [Transfer(k, 0, 8.0) for k in range(peers)]


@dataclass(frozen=True)
class Sends:
    message: type = Cheap

    def round(self, peer, batches):
        peer.step(peer.loss(next(batches)))
        peer.params = yield self.message(peer.params)


@dataclass(frozen=True)
class Divides:
    def round(self, peer, batches):
        1 / 0  # noqa: B018
        yield


@dataclass(frozen=True)
class Silent:
    def round(self, peer, batches):
        peer.step(peer.loss(next(batches)))


@dataclass(frozen=True)
class Spreads:
    def round(self, peer, batches):
        peer.step(peer.loss(next(batches)))
        mean = yield Mean(peer.params)
        peer.params = tree.map(torch.sum, mean)


@dataclass(frozen=True)
class Greedy:
    participation: float = 2.0

    def round(self, peer, batches):
        yield Mean(peer.params)


@pytest.mark.parametrize(
    ("mine", "steps", "alone"),
    [
        (LocalSGD(every=3), "3 steps a round", "is plain SGD"),
        (Gossip("ring"), "1 step a round", "is plain SGD"),
        (Adaptive(), "2 to 4 steps a round", "is plain SGD"),
        (Slower(), "1 step a round", "differs from plain SGD by"),
        (ParameterServer(lk.BSP()), "1 step a round", "is plain SGD"),
    ],
    ids=repr,
)
def test_what_holds_is_reported(mine, steps, alone):
    report = checked(mine)
    said = found(report)
    assert said["runs"][0] == "holds" and f"4 peers, 2 rounds, {steps}" in said["runs"][1]
    assert {said[it][0] for it in ("same seed", "stacked", "stacked in blocks")} == {"holds"}
    assert said["peers of equal data"] == ("note", "stay equal") and alone in said["one peer alone"][1]
    assert "✗" not in repr(report) and repr(report).count("\n") == len(report.findings)
    assert report._repr_html_().count("<tr") == len(report.findings)


class Shaking:
    """Adds noise from the generator that all share."""

    def round(self, peer, batches):
        mean = yield Mean(peer.gradients(peer.loss(next(batches))))
        peer.apply({name: gradient + 0.01 * torch.randn_like(gradient) for name, gradient in mean.items()})


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        (Mixing(), r"^Mixing, stacked: differs from lockstep by .*, more than 1e-05: count dimensions from the end"),
        (
            Shaking(),
            r"^Shaking, stacked: .* as it draws random numbers .*: draw random numbers from a generator of your",
        ),
        (Rolling(), r"^Rolling, same seed: a second run from the same seed differs by .*peer\.seed"),
        (Sends(Cheap), r"^Sends, bytes: .* by its messages' bytes\(\), and their transfers\(\) add up to"),
        (Sends(Wandering), r"^Sends, bytes: .*transfers\(\) add up to 16 B\.$"),
        (Divides(), r"^Divides, runs: it raised ZeroDivisionError: division by zero"),
        (Silent(), r"^Silent, runs: Silent\.round \(line \d+\) is no generator"),
        (Spreads(), r"^Spreads, runs: Spreads\.round \(line \d+\) gives peer\.params a tensor of shape \[\]"),
        (Greedy(), r"^Greedy, runs: Greedy\.participation"),
    ],
    ids=lambda it: type(it).__name__,
)
def test_what_does_not_hold_is_one_sentence_with_the_report_as_a_note(mine, says):
    with pytest.raises(CheckFailed) as caught:
        checked(mine)
    text = str(caught.value)
    assert re.search(says, text) and "\n" not in text and isinstance(caught.value, LabkitError)
    assert any(note.startswith(f"Check of {mine!r}") and "✗" in note for note in caught.value.__notes__)


def test_real_workers_are_asked_where_there_is_a_lab(lab):
    said = found(checked(LocalSGD(2), peers=2, lab=lab))["real workers"]
    assert said[0] == "holds" and "counted" in said[1]
    assert found(checked(LocalSGD(2), peers=3, lab=lab))["real workers"][0] == "holds"  # two of them share a worker
    server = found(checked(ParameterServer(lk.ASP()), peers=2, lab=lab))["real workers"]
    assert server[0] == "note" and server[1].startswith("runs")
    with pytest.raises(CheckFailed, match=r"Sends, real workers: .* were counted on the wire"):
        checked(Sends(Cheap), peers=2, lab=lab)


def test_settings_of_train_reach_it():
    public = lk.data.load("digits").test_x[:64]
    report = checked(lk.algorithms.FedMD(), public=public, peers=2)
    assert isinstance(report, AlgorithmReport) and found(report)["stacked"][0] == "holds"
