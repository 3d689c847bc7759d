"""Differential privacy: clipping, noise, and ε beside published figures and the exact one."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from labkit.errors import MissingPackage, SettingError
from labkit.exchange.privacy import clip, epsilon, gaussian


def test_clipping_shortens_what_is_too_long_and_nothing_else():
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(clip(x, 2.5), torch.tensor([[1.5, 2.0], [0.3, 0.4], [0.0, 0.0]]))


def test_the_noise_is_normal_of_the_deviation_asked_for():
    noise = gaussian(200_000, deviation=3.0, key=1)
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(3, rel=0.01)
    assert (noise.abs() > 3 * 1.96).double().mean().item() == pytest.approx(0.05, abs=0.003)


def test_noise_is_alike_for_all_who_have_the_key_and_only_for_them():
    assert torch.equal(gaussian(9, 1.0, key=1), gaussian(9, 1.0, key=1))
    assert not torch.equal(gaussian(9, 1.0, key=1), gaussian(9, 1.0, key=2))


@pytest.mark.parametrize(
    ("noise", "rounds", "present", "published"),
    [
        (4.0, 10_000, 10, 1.26),  # Abadi et al., arXiv:1607.00133, Sec. 3.2: q = 0.01, σ = 4, moments accountant
        (1.12, 14_062, 256 / 60, 2.92),  # TensorFlow Privacy's MNIST tutorial: 60 epochs of batches of 256
    ],
)
def test_epsilon_is_a_little_below_what_was_published_before_bounds_got_tighter(noise, rounds, present, published):
    # Newer conversions from Rényi divergence to (ε, δ) give somewhat smaller ε for the same mechanism.
    peers = 60_000
    told = epsilon(noise, rounds, peers, round(present * 60), 1e-5, sampling="poisson")
    assert 0.75 * published < told <= published


def exact(noise, rounds, delta):
    """ε of the Gaussian mechanism, exactly: Balle & Wang 2018, arXiv:1805.06530, Thm. 8."""
    s = noise / math.sqrt(rounds)
    at = lambda e: norm.cdf(1 / (2 * s) - e * s) - math.exp(e) * norm.cdf(-1 / (2 * s) - e * s) - delta  # noqa: E731
    return brentq(at, 0, 200)


@pytest.mark.parametrize(("noise", "rounds"), [(1.1, 1), (5.0, 10), (10.0, 100)])
def test_epsilon_of_everyone_in_every_round_is_the_exact_one_or_a_little_more(noise, rounds):
    for sampling, sensitivity in (("poisson", 1), ("fixed", 2)):
        told = epsilon(noise, rounds, 100, 100, 1e-5, sampling)
        assert exact(noise / sensitivity, rounds, 1e-5) <= told <= 1.1 * exact(noise / sensitivity, rounds, 1e-5)


@pytest.mark.parametrize("less", [{"noise": 2.0}, {"rounds": 5}, {"present": 5}])
def test_more_noise_fewer_rounds_and_fewer_peers_a_round_give_away_less(less):
    run = {"noise": 1.0, "rounds": 10, "peers": 100, "present": 10, "delta": 1e-5, "sampling": "poisson"}
    assert epsilon(**run | less) < epsilon(**run)


def test_rounds_of_a_fixed_size_whose_peers_are_replaced_give_away_more():
    run = {"noise": 1.0, "rounds": 10, "peers": 100, "present": 10, "delta": 1e-5}
    assert epsilon(**run, sampling="poisson") < epsilon(**run)


def test_without_noise_there_is_no_privacy():
    assert epsilon(0.0, 1, 10, 10, 1e-5) == math.inf


@pytest.mark.parametrize("change", [{"rounds": 0}, {"present": 11}, {"present": 0}, {"delta": 0.0}, {"delta": 1.0}])
def test_runs_that_cannot_be_are_refused(change):
    with pytest.raises(SettingError, match="are no run whose ε can be told: give at least one round"):
        epsilon(**({"noise": 1.0, "rounds": 1, "peers": 10, "present": 5, "delta": 1e-5} | change))


def test_unknown_sampling_is_refused():
    with pytest.raises(SettingError, match="give 'fixed' or 'poisson'"):
        epsilon(1.0, 1, 10, 10, 1e-5, "shuffle")


def test_a_missing_accountant_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(MissingPackage, match=r"pip install 'labkit\[privacy\]'"):
        epsilon(1.0, 1, 10, 10, 1e-5)
