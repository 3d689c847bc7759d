"""Mix: every peer's reply is its row of W times all values, at the cost of its neighbours alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labkit.costs.link import Link
from labkit.errors import ExchangeError, SettingError
from labkit.exchange import Mean, Mix, Topology, topologies

LINK = Link(latency=1e-3, bandwidth=1e6)


def rows(peers):
    generator = torch.Generator().manual_seed(peers)
    return {"w": torch.randn(peers, 3, 2, generator=generator), "b": torch.randn(peers, generator=generator)}


def each(stacked, peers):
    return [{name: leaf[i] for name, leaf in stacked.items()} for i in range(peers)]


def stack(trees):
    return {name: torch.stack([tree[name] for tree in trees]) for name in trees[0]}


@pytest.mark.parametrize("name", topologies.NAMES)
@pytest.mark.parametrize("peers", [5, 12])
def test_lockstep_and_stacked_are_the_matrix_product(name, peers):
    x = rows(peers)
    w = torch.tensor(topologies.choose(name, peers).weights, dtype=torch.float32)
    expected = {key: torch.tensordot(w, leaf, 1) for key, leaf in x.items()}
    torch.testing.assert_close(Mix(x, name).stacked(), expected)
    torch.testing.assert_close(stack(Mix.lockstep([Mix(value, name) for value in each(x, peers)])), expected)


def test_a_direction_of_w_is_heeded():
    """W[0, 1] = 1: peer 0 receives from peer 1."""
    around = np.eye(3)[[1, 2, 0]]
    assert Mix(torch.tensor([1.0, 2.0, 3.0]), around).stacked().tolist() == [2, 3, 1]
    assert [it.item() for it in Mix.lockstep([Mix(torch.tensor(v), around) for v in (1.0, 2.0, 3.0)])] == [2, 3, 1]


def test_a_complete_graph_gives_the_mean():
    x = rows(7)
    mixed, mean = Mix(x, "complete").stacked(), Mean(x).stacked()
    torch.testing.assert_close(mixed, {name: leaf.expand_as(mixed[name]) for name, leaf in mean.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mixing_keeps_the_dtype_and_the_mean(dtype):
    x = torch.arange(6.0).to(dtype)
    mixed = Mix(x, "ring").stacked()
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.mean(), x.mean())


def test_mixing_ten_thousand_peers_needs_no_dense_matrix():
    mixed = Mix(torch.arange(10_000.0), "ring").stacked()
    assert mixed[5000].item() == pytest.approx(5000)


@pytest.mark.parametrize(
    ("name", "peers", "neighbours", "most"),
    [("ring", 8, 2, 2), ("torus", 12, 4, 4), ("exponential", 8, 3, 3), ("complete", 5, 4, 4), ("star", 5, 1.6, 4)],
)
def test_mix_costs_one_value_for_each_neighbour(name, peers, neighbours, most):
    message = Mix(torch.zeros(1000), name)
    assert message.bytes(peers) == pytest.approx(neighbours * 4000)
    assert message.seconds(peers, LINK) == pytest.approx(most * (1e-3 + 4000 / 1e6))
    assert sum(it.nbytes for it in message.transfers(peers)) == pytest.approx(peers * message.bytes(peers))


def test_transfers_run_from_neighbour_to_peer():
    transfers = Mix(torch.zeros(1), np.eye(3)[[1, 2, 0]]).transfers(3)
    assert [(it.source, it.target, it.nbytes) for it in transfers] == [(1, 0, 4), (2, 1, 4), (0, 2, 4)]


def test_peers_who_are_ready_together_wait_what_the_message_costs():
    message = Mix(torch.zeros(1000), "ring")
    ready = torch.full((6,), 2.0, dtype=torch.float64)
    torch.testing.assert_close(message.arrivals(ready, LINK), ready + message.seconds(6, LINK))


def test_a_slow_peer_delays_its_neighbours_only():
    ready = torch.zeros(6, dtype=torch.float64)
    ready[3] = 10
    assert Mix(torch.zeros(1000), "ring").arrivals(ready, LINK).tolist() == pytest.approx(
        [0.01, 0.01, 10.01, 10.01, 10.01, 0.01]
    )
    assert ready.tolist() == [0, 0, 0, 10, 0, 0]


def test_who_has_no_partner_does_not_wait():
    message = Mix(torch.zeros(1000), topologies.pairing(3))
    alone = [i for i in range(3) if not message.topology.neighbours(i)]
    arrivals = message.arrivals(torch.zeros(3, dtype=torch.float64), LINK)
    assert [i for i in range(3) if arrivals[i] == 0] == alone


def test_a_topology_of_another_number_of_peers_is_refused_in_every_form():
    topology = topologies.ring(4)
    for use in (
        lambda: Mix(torch.zeros(5), topology).stacked(),
        lambda: Mix.lockstep([Mix(torch.zeros(1), topology)] * 5),
        lambda: Mix(torch.zeros(1), topology).bytes(5),
    ):
        with pytest.raises(ExchangeError, match="joins 4 peers, but 5 take part"):
            use()


def test_a_matrix_that_is_not_doubly_stochastic_is_refused_where_it_is_yielded():
    with pytest.raises(SettingError, match=r"row 0 adds up to 0\.5"):
        Mix(torch.zeros(1), [[0.5, 0.0], [0.5, 1.0]])


def test_peers_of_different_shapes_are_refused():
    with pytest.raises(ExchangeError, match="different shapes"):
        Mix.lockstep([Mix(torch.zeros(2), "ring"), Mix(torch.zeros(3), "ring")])


def test_stacking_leaves_the_topology_alone():
    topology = Topology.of(np.eye(2))
    lifted = Mix(torch.zeros(3), topology).lift()
    assert lifted.topology is topology and Mix.join([lifted, lifted]).x.shape == (2, 3)
