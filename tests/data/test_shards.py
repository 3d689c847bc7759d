"""Shards are disjoint, complete, seeded and as skewed as their name says; no peer goes without."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from labkit.data import IID, ByLabel, Dirichlet, Quantity, Replicated, load
from labkit.data.dataset import Sharding
from labkit.data.shards import owners_by_share, owners_per_class, shares, topped_up
from labkit.errors import DataError, SettingError
from tests.data.toys import labelled
from tests.examples import few, many

ALPHAS = [5e-324, 0.01, 0.3, 1, 100.0, 1e308]
DISJOINT = [IID(), Dirichlet(0.1), Dirichlet(0.1, least=20), Dirichlet(100), ByLabel(2), Quantity(0.3), Quantity(9)]
named = pytest.mark.parametrize("how", DISJOINT, ids=repr)


def _classes_held(labels: np.ndarray, partition) -> list[int]:
    return [len(np.unique(labels[mine])) for mine in partition.indices]


@named
def test_shards_are_disjoint_and_complete_and_nobody_goes_without(how):
    shards = load("digits").shards(10, how, seed=3)
    assert len(shards) == 10
    assert shards.check()
    assert min(shards.sizes) >= getattr(how, "least", 1)
    assert all(mine.dtype == np.int64 for mine in shards.indices)


@named
def test_the_seed_alone_decides_the_shards(how):
    first, again, other = (load("digits").shards(10, how, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@few
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=80),
    crowd=st.floats(0, 1),
    alpha=st.sampled_from(ALPHAS),
    least=st.integers(1, 4),
    kind=st.sampled_from([Dirichlet, Quantity]),
    seed=st.integers(0, 99),
)
def test_skew_of_any_strength_gives_every_peer_its_least(labels, crowd, alpha, least, kind, seed):
    least = min(least, len(labels))
    peers = max(1, round(crowd * (len(labels) // least)))
    shards = labelled(labels).shards(peers, kind(alpha, least), seed)
    assert shards.check()
    assert min(shards.sizes) >= least


@many
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=80),
    peers=st.integers(1, 40),
    each=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_by_label_gives_every_peer_exactly_as_many_classes_as_asked(labels, peers, each, seed):
    sizes = np.unique(labels, return_counts=True)[1]
    fits = len(sizes) <= peers * each <= np.minimum(sizes, peers).sum()
    if not fits:
        with pytest.raises(DataError):
            labelled(labels).shards(peers, ByLabel(each), seed)
        return
    shards = labelled(labels).shards(peers, ByLabel(each), seed)
    assert shards.check()
    assert _classes_held(np.array(labels), shards) == [each] * peers


def test_by_label_pairs_the_classes_anew_with_another_seed():
    y = load("digits").y.numpy()
    pairs = {
        tuple(np.unique(y[mine]))
        for seed in range(20)
        for mine in load("digits").shards(10, ByLabel(2), seed=seed).indices
    }
    assert len(pairs) > 30  # of 45


@pytest.mark.parametrize("how", [IID(), Dirichlet(100), ByLabel(1), Quantity(100)], ids=repr)
def test_which_examples_of_a_class_go_where_is_random(how):
    first, _ = labelled([0] * 100).shards(2, how, seed=0).indices
    assert 0 < np.count_nonzero(first < 50) < len(first)


def test_by_label_shares_a_class_evenly_among_its_owners():
    shards = labelled([0] * 40 + [1] * 40 + [2] * 40).shards(6, ByLabel(1), seed=0)
    assert set(shards.sizes) == {20}


def test_a_small_alpha_skews_labels_and_a_large_one_does_not():
    def largest_class(alpha: float) -> float:
        """The mean share of a peer's commonest class."""
        digits = load("digits")
        dealt = [digits.y[mine] for mine in digits.shards(10, Dirichlet(alpha), seed=0).indices]
        return float(np.mean([np.bincount(y).max() / len(y) for y in dealt]))

    assert largest_class(0.05) > 0.5 > largest_class(1.0) > largest_class(1e6)
    assert largest_class(1e6) < 0.12


def test_quantity_skews_sizes_and_leaves_labels_alone():
    y = np.arange(20_000) % 10
    shards = labelled(y.tolist()).shards(5, Quantity(0.5), seed=0)
    assert max(shards.sizes) > 4 * min(shards.sizes)
    for mine in shards.indices:
        if len(mine) > 1000:
            assert np.bincount(y[mine]).min() > 0.07 * len(mine)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_shares_are_a_distribution_however_extreme_alpha_is(alpha):
    p = shares(alpha, 1000, np.random.default_rng(0))
    assert np.isfinite(p).all() and (p >= 0).all()
    assert p.sum() == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 3.0])
def test_shares_have_the_variance_of_the_dirichlet_distribution(alpha):
    n, random = 8, np.random.default_rng(0)
    p = np.array([shares(alpha, n, random) for _ in range(4000)])
    assert p.mean(0) == pytest.approx(np.full(n, 1 / n), rel=0.15)
    # Var pᵢ = (1/n)(1 − 1/n)/(nα + 1)
    assert p.var(0).mean() == pytest.approx((1 / n) * (1 - 1 / n) / (n * alpha + 1), rel=0.05)


def test_examples_are_dealt_in_proportion_to_the_shares():
    owner = owners_by_share(10, np.array([0.5, 0.0, 0.2, 0.3]))
    assert owner.tolist() == [0] * 5 + [2] * 2 + [3] * 3


@many
@given(owner=st.lists(st.integers(0, 9), min_size=1, max_size=60), least=st.integers(0, 6))
def test_topping_up_takes_from_the_largest_alone_and_no_more_than_is_missing(owner, least):
    least = min(least, len(owner) // 10)
    before = np.bincount(owner, minlength=10)
    topped = topped_up(np.array(owner), 10, least, np.random.default_rng(0))
    after = np.bincount(topped, minlength=10)
    assert after.sum() == len(owner)
    assert (after[before < least] == least).all()
    gave = before > after
    if gave.any():
        assert after[gave].min() >= least
        assert np.ptp(after[gave]) <= 1
        assert after[gave].min() >= after[~gave].max() - 1
    assert np.count_nonzero(topped != owner) == np.maximum(least - before, 0).sum()


def test_slots_follow_the_sizes_of_the_classes():
    assert owners_per_class(np.array([600, 300, 100]), total=10, most=10).tolist() == [6, 3, 1]
    assert owners_per_class(np.array([997, 1, 2]), total=6, most=4).tolist() == [4, 1, 1]


@pytest.mark.parametrize("how", [Dirichlet(0.05), ByLabel(1), Quantity(0.05)], ids=repr)
def test_a_hundred_thousand_peers_are_dealt_to(how):
    shards = labelled((np.arange(100_000) % 10).tolist()).shards(100_000, how, seed=0)
    assert set(shards.sizes) == {1}


def test_replicated_gives_everybody_the_same_array_and_nobody_a_copy():
    shards = load("digits").shards(10_000, Replicated())
    assert len(shards) == 10_000
    assert all(mine is shards.indices[0] for mine in shards.indices)
    assert np.array_equal(shards.indices[0], np.arange(1438))
    assert not shards.indices[0].flags.writeable
    assert not load("digits").shards(2, Replicated()).check()


def test_more_peers_than_examples_may_hold_them_all():
    assert len(labelled([0, 1]).shards(5, Replicated())) == 5


def test_only_replicated_shards_have_a_common_order():
    kinds: list[type[Sharding]] = [IID, Dirichlet, ByLabel, Quantity, Replicated]
    assert [kind.common_order for kind in kinds] == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Dirichlet(0), "alpha is 0; give a number above 0"),
        (lambda: Dirichlet(-1.0), "alpha is -1.0"),
        (lambda: Dirichlet(math.nan), "alpha is nan"),
        (lambda: Quantity(math.inf), "alpha is inf"),
        (lambda: Quantity("1"), "alpha is '1'"),
        (lambda: Dirichlet(True), "alpha is True"),
        (lambda: Dirichlet(0.5, least=0), "least is 0"),
        (lambda: Quantity(0.5, least=1.5), "least is 1.5"),
        (lambda: ByLabel(0), "labels is 0"),
        (lambda: load("digits").shards(0), "peers is 0"),
        (lambda: load("digits").shards(2, Dirichlet(1), seed=-1), "seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_sentence(make, says):
    with pytest.raises(SettingError, match=says):
        make()


@pytest.mark.parametrize(
    ("how", "peers", "says"),
    [
        (IID(), 5000, "too few for 5000 peers: take at most 1438 peers"),
        (Dirichlet(1), 1439, "too few for 1439 peers: take at most 1438 peers"),
        (Quantity(1, least=200), 10, "to give each of 10 peers 200: take least=143 or less, or fewer peers"),
        (ByLabel(11), 5, "more classes than the 10 of digits: take labels=10 or less"),
        (ByLabel(2), 4, "4 peers with 2 classes each cannot hold the 10 .* at least 5 peers, or labels=3"),
        (ByLabel(10), 1000, "too few examples of its classes for 1000 peers with 10 classes each: take fewer"),
    ],
)
def test_what_the_examples_do_not_allow_is_refused_in_one_sentence(how, peers, says):
    with pytest.raises(DataError, match=says):
        load("digits").shards(peers, how)


def test_what_the_refusal_advises_works():
    assert load("digits").shards(10, Quantity(1, least=143)).check()
    assert load("digits").shards(5, ByLabel(2)).check()
    assert load("digits").shards(4, ByLabel(3)).check()


def test_targets_that_are_no_classes_cannot_be_dealt_by_class():
    pairs = labelled([0, 1, 2, 3])
    object.__setattr__(pairs, "y", pairs.y[:, None])
    for how in (Dirichlet(1), ByLabel(1)):
        with pytest.raises(DataError, match=r"not one class number for each example: take IID"):
            pairs.shards(2, how)
