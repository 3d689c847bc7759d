"""Topologies: doubly stochastic, connected, with the published spectral gaps; a W that is not is refused by name."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, strategies as st

from labkit.errors import ExchangeError, SettingError
from labkit.exchange import Topology, topologies
from labkit.exchange.topologies import choose
from tests.examples import few


def gap_by_definition(w):
    return 1 - np.sort(np.abs(np.linalg.eigvals(w)))[-2]


@pytest.mark.parametrize("name", topologies.NAMES)
@given(n=st.integers(1, 40))
@few
def test_every_topology_is_doubly_stochastic_for_any_number_of_peers(name, n):
    if name == "random_regular" and n < 5:
        return
    w = choose(name, n).weights
    assert w.shape == (n, n) and (w >= 0).all()
    np.testing.assert_allclose(w.sum(0), 1)
    np.testing.assert_allclose(w.sum(1), 1)


@pytest.mark.parametrize("name", topologies.NAMES)
@pytest.mark.parametrize("n", [5, 8, 12])
def test_the_spectral_gap_is_that_of_all_eigenvalues(name, n):
    topology = choose(name, n)
    assert topology.spectral_gap == pytest.approx(gap_by_definition(topology.weights), abs=1e-9)


@pytest.mark.parametrize("n", [4, 5, 8, 100, 10_000])
def test_the_gap_of_a_ring_is_the_published_one(n):
    assert topologies.ring(n).spectral_gap == pytest.approx(1 - (1 + 2 * math.cos(2 * math.pi / n)) / 3, abs=1e-12)


@pytest.mark.parametrize("n", [2, 6, 8, 64, 100])
def test_the_gap_of_an_exponential_graph_is_the_published_one(n):
    assert topologies.exponential(n).spectral_gap == pytest.approx(2 / (1 + math.ceil(math.log2(n))))


def test_the_gap_of_a_complete_graph_is_one():
    assert topologies.complete(9).spectral_gap == 1


def test_the_gap_of_a_star_is_one_part_of_its_peers():
    assert topologies.star(9).spectral_gap == pytest.approx(1 / 9)


def test_the_gap_of_many_peers_is_estimated_well():
    """2,000 peers: a power iteration beside all eigenvalues."""
    topology = topologies.random_regular(2000, degree=4, seed=2)
    exact = 1 - np.sort(np.abs(np.linalg.eigvalsh(topology.weights)))[-2]
    assert topology.spectral_gap == pytest.approx(exact, rel=0.03)


def test_mixing_brings_peers_nearer_to_their_mean_by_what_the_gap_promises():
    topology = topologies.torus(30)
    x = np.random.default_rng(0).standard_normal(30)
    spread = np.linalg.norm(x - x.mean())
    for _ in range(25):
        x = topology.weights @ x
    assert np.linalg.norm(x - x.mean()) <= (1 - topology.spectral_gap) ** 25 * spread * (1 + 1e-9)


@pytest.mark.parametrize(
    ("topology", "peer", "neighbours"),
    [
        (topologies.ring(5), 0, [1, 4]),
        (topologies.ring(2), 0, [1]),
        (topologies.ring(1), 0, []),
        (topologies.torus(12), 5, [1, 4, 6, 9]),
        (topologies.torus(12), 0, [1, 3, 4, 8]),
        (topologies.torus(6), 0, [1, 2, 3]),
        (topologies.torus(7), 0, [1, 6]),
        (topologies.star(4), 0, [1, 2, 3]),
        (topologies.star(4), 2, [0]),
        (topologies.exponential(8), 3, [4, 5, 7]),
        (topologies.complete(4), 1, [0, 2, 3]),
    ],
    ids=repr,
)
def test_neighbours_are_those_one_receives_from(topology, peer, neighbours):
    assert topology.neighbours(peer) == neighbours


@given(n=st.integers(3, 40), degree=st.integers(2, 7), seed=st.integers(0, 5))
@few
def test_a_random_regular_graph_is_regular_connected_and_seeded(n, degree, seed):
    if degree >= n or n * degree % 2:
        with pytest.raises(SettingError, match=f"joins {n} peers with {degree} neighbours"):
            topologies.random_regular(n, degree, seed)
        return
    topology = topologies.random_regular(n, degree, seed)
    assert {len(topology.neighbours(i)) for i in range(n)} == {degree}
    assert topology.spectral_gap > 0 or np.linalg.matrix_rank(topology.weights - np.eye(n)) == n - 1
    topologies.random_regular.cache_clear()
    np.testing.assert_array_equal(topologies.random_regular(n, degree, seed).weights, topology.weights)


def test_large_random_graphs_are_connected_at_once():
    for degree in (2, 3):
        assert topologies.random_regular(3000, degree).degree == degree


@pytest.mark.parametrize("degree", [20, 38, 39])
def test_a_dense_random_graph_is_drawn_as_quickly_as_a_sparse_one(degree):
    assert set(topologies.random_regular(40, degree).degrees) == {degree}


def test_random_graphs_differ_from_seed_to_seed():
    graphs = {topologies.random_regular(20, 3, seed).weights.tobytes() for seed in range(5)}
    assert len(graphs) == 5


def test_few_of_a_random_graphs_edges_are_those_it_began_with():
    began = {(i, (i + k) % 200) for i in range(200) for k in (-2, -1, 1, 2)}
    edges = set(map(tuple, topologies.random_regular(200, 4).edges.tolist()))
    assert len(edges & began) < 40  # of 800; 16 are expected by chance


@pytest.mark.parametrize(("n", "alone"), [(8, 0), (9, 1), (1, 1)])
def test_a_pairing_gives_everyone_one_partner_and_leaves_one_of_an_odd_number_alone(n, alone):
    topology = topologies.pairing(n, seed=3, number=7)
    partners = [topology.neighbours(i) for i in range(n)]
    assert sum(not it for it in partners) == alone
    assert all(partners[it[0]] == [i] for i, it in enumerate(partners) if it)


def test_pairings_change_from_round_to_round():
    assert len({topologies.pairing(12, number=number).weights.tobytes() for number in range(5)}) == 5


def test_a_name_that_varies_wants_to_know_the_round():
    assert choose("pairing", 12, seed=3, number=7) is topologies.pairing(12, 3, 7)
    assert choose("one_peer_exponential", 12, seed=3, number=6).neighbours(0) == [4]
    for name in ("pairing", "one_peer_exponential"):
        with pytest.raises(SettingError, match=f"{name}' is another topology in each round: give that of the round"):
            choose(name, 12)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 16])
def test_the_one_peer_exponential_graphs_of_a_cycle_are_the_mean_where_peers_are_a_power_of_two(n):
    hops = max(1, (n - 1).bit_length())
    for first in (0, 5):
        product = np.linalg.multi_dot(
            [np.eye(n), *(topologies.one_peer_exponential(n, first + k).weights for k in range(hops))]
        )
        np.testing.assert_allclose(product.sum(0), 1)
        assert np.allclose(product, 1 / n) == (n in (1, 2, 8, 16))


def test_a_name_is_built_once():
    assert choose("ring", 77) is choose("ring", 77)


def test_ten_thousand_peers_are_kept_sparse():
    topology = topologies.ring(10_000)
    assert topology.values.nbytes + topology.sources.nbytes + topology.targets.nbytes < 1_000_000


@pytest.mark.parametrize(
    ("w", "words"),
    [
        ([[0.5, 0.5], [0.4, 0.5]], r"its row 1 adds up to 0\.9"),
        ([[1.0, 0.0], [1.0, 0.0]], r"its column 0 adds up to 2"),
        ([[1.0, 0.0], [0.0, 0.0]], r"its row 1 adds up to 0"),
        ([[1.5, -0.5], [-0.5, 1.5]], r"W\[0, 1\] is -0\.5"),
        ([[float("nan"), 1.0], [1.0, 0.0]], r"its row 0 adds up to nan"),
        ([[0.5, 0.5]], r"shape \[1, 2\].*square"),
        ([], r"shape \[0\].*square"),
    ],
)
def test_a_matrix_that_is_not_doubly_stochastic_is_refused_naming_where(w, words):
    with pytest.raises(SettingError, match=words):
        Topology.of(w)


@pytest.mark.parametrize("n", [0, -1, 2.5, "8"])
@pytest.mark.parametrize("name", topologies.NAMES)
def test_a_number_of_peers_that_is_none_is_refused(name, n):
    with pytest.raises(SettingError, match=r"peers is .*(whole number|give at least 1)"):
        choose(name, n)


def test_a_complete_graph_too_large_to_hold_points_to_the_mean():
    with pytest.raises(SettingError, match="send a Mean instead"):
        topologies.complete(100_000)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(SettingError, match="'circle' is no topology: give one of ring, torus"):
        choose("circle", 4)


def test_a_topology_of_another_number_of_peers_is_refused():
    with pytest.raises(ExchangeError, match="joins 4 peers, but 5 take part"):
        choose(topologies.ring(4), 5)


def test_own_weights_are_taken_as_they_are():
    w = np.array([[0.6, 0.4, 0.0], [0.0, 0.6, 0.4], [0.4, 0.0, 0.6]])
    topology = choose(w, 3)
    np.testing.assert_array_equal(topology.weights, w)
    assert topology.neighbours(0) == [1] and topology.degree == 1


def test_a_topology_travels_to_workers():
    topology = pickle.loads(pickle.dumps(topologies.torus(12)))
    assert repr(topology) == "torus 3 × 4 of 12 peers: 4 neighbours each, spectral gap 0.4"


@pytest.mark.parametrize("name", topologies.NAMES)
@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_every_topology_can_be_drawn_and_is_described(name, n):
    if name == "random_regular" and n < 5:
        return
    topology = choose(name, n)
    picture = topology.plot()
    assert picture.png().startswith(b"\x89PNG") and picture.alt == repr(topology)


def test_a_plane_torus_stands_in_rows_and_a_ring_in_a_circle():
    for topology, distances in ((topologies.torus(12), {0.0, 1.0, 2.0, 3.0}), (topologies.ring(12), None)):
        (dots,) = [
            it
            for it in topology.plot().figure.axes[0].collections
            if len(it.get_offsets()) == 12 and it.get_sizes().any()
        ]
        x = {round(float(v), 6) for v in dots.get_offsets()[:, 0]}
        assert x == distances if distances else len(x) > 4


def test_only_links_of_one_direction_have_arrows():
    heads = {name: len(choose(name, 8).plot().figure.axes[0].texts) for name in ("ring", "exponential")}
    assert heads == {"ring": 0, "exponential": 24}
