"""Byzantine peers do what they are told to, and robust means survive them where the mean does not."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import labkit as lk
from labkit.algorithms import AllReduce, Byzantine, Robust
from labkit.errors import ExchangeError, SettingError
from labkit.exchange import CoordinateMedian, Krum, TrimmedMean
from tests.algorithms.hand import Drift, Tell, alone, in_a_stack, in_lockstep, stacked
from tests.engines.experiments import result

VALUES = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}
SETTINGS = {"peers": 10, "rounds": 80, "batch_size": 32, "optimizer": partial(torch.optim.SGD, lr=0.3)}


def sent(algorithm, **settings):
    """What three peers send, [3, P], which is the same whether they are stacked or not."""
    (met,) = in_lockstep(algorithm, alone(3, **settings))
    rows = torch.stack([message.x["w"] for message in met])
    (together,) = in_a_stack(algorithm, stacked(3, **settings))
    torch.testing.assert_close(together.x["w"], rows)
    return rows


@pytest.mark.parametrize(
    ("attack", "scale", "expected"),
    [
        ("flip", 1.0, [[-1.0, -2.0], [3.0, 4.0], [-5.0, -6.0]]),
        ("flip", 10.0, [[-10.0, -20.0], [3.0, 4.0], [-50.0, -60.0]]),
        ("zero", 1.0, [[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]),
        (lambda x: x + 100, 1.0, [[101.0, 102.0], [3.0, 4.0], [105.0, 106.0]]),
    ],
    ids=["flip", "flip more", "zero", "own"],
)
def test_the_peers_named_send_the_attack_and_the_others_what_they_would(attack, scale, expected):
    assert sent(Byzantine(Tell(VALUES), (0, 2), attack, scale)).tolist() == expected


def test_what_is_attacked_is_the_change_since_the_start():
    start = {"w": torch.tensor([1.0, 1.0])}
    assert sent(Byzantine(Tell(VALUES, start=start), (1,), "flip")).tolist() == [[1.0, 2.0], [-1.0, -2.0], [5.0, 6.0]]


def test_noise_is_of_the_scale_given_and_new_for_each_peer_and_round():
    values = {"w": torch.zeros(3, 10_000)}
    noisy = sent(Byzantine(Tell(values), (0, 1), "noise", scale=3.0))
    assert noisy[:2].std(1).tolist() == pytest.approx([3.0, 3.0], rel=0.05) and noisy[2].abs().max() == 0
    assert not torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], sent(Byzantine(Tell(values), (0, 1), "noise", scale=3.0), number=2)[0])


ATTACKS = [("flip", 5.0), ("noise", 5.0), (lambda x: torch.full_like(x, torch.nan), 1.0)]


@pytest.mark.parametrize("inner", [AllReduce(), Drift()], ids=repr)
@pytest.mark.parametrize("rule", [CoordinateMedian(), TrimmedMean(2), Krum(2), Krum(2, keep=5)], ids=repr)
def test_robust_means_survive_a_fifth_of_byzantine_peers(inner, rule):
    for attack, scale in ATTACKS:
        run = result(lk.Simulator(), Robust(Byzantine(inner, (3, 7), attack, scale), rule), **SETTINGS)
        assert run.final.accuracy > 0.75


@pytest.mark.parametrize("inner", [AllReduce(), Drift()], ids=repr)
@pytest.mark.parametrize(("attack", "scale"), ATTACKS[:2], ids=["flip", "noise"])
def test_the_mean_does_not(inner, attack, scale):
    run = result(lk.Simulator(), Byzantine(inner, (3, 7), attack, scale), **SETTINGS)
    assert run.final.accuracy < 0.6


def test_an_unknown_attack_is_refused():
    with pytest.raises(SettingError, match="attack='bribe' is not known: give 'flip', 'noise', 'zero', or a function"):
        Byzantine(AllReduce(), attack="bribe")


@pytest.mark.parametrize("peers", [(), (-1,), (0.5,)])
def test_peers_that_are_none_are_refused(peers):
    with pytest.raises(SettingError, match=r"names no peers: give their numbers from 0|one of peers is .* at least 0"):
        Byzantine(AllReduce(), peers)


def test_a_peer_that_there_is_not_is_refused():
    with pytest.raises(SettingError, match=r"peers=\(1, 3\) names one that is not among the 3 peers: .* from 0 to 2"):
        in_lockstep(Byzantine(Tell(VALUES), (1, 3)), alone(3))


def test_an_attack_of_another_shape_is_refused():
    with pytest.raises(ExchangeError, match=r"made \[1\] of \[2\]: return a tensor of the shape it was given"):
        in_lockstep(Byzantine(Tell(VALUES), (0,), lambda x: x[:1]), alone(3))


def test_what_is_no_rule_is_refused():
    with pytest.raises(SettingError, match=r"'median' is no rule: give labkit\.exchange\.CoordinateMedian\(\)"):
        Robust(AllReduce(), "median")
