"""Push and Pair: what they send, who answers them, and that no barrier takes them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from labkit import tree
from labkit.costs.link import Link
from labkit.errors import ExchangeError, SettingError
from labkit.exchange import Pair, Push, topologies
from labkit.exchange.group import RankGroup
from labkit.exchange.requests import unwrapped, wrapped

X = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float64), "s": torch.tensor(3.0)}
BYTES = 6 * 4 + 2 * 8 + 4


class Remember:
    """A server that keeps what it was given."""

    def __init__(self, weights):
        self.weights, self.version, self.taken = weights, 0, []

    def take(self, update, staleness):
        self.taken.append((update, staleness))
        self.version += 1


def stacked(rows):
    return tree.map(lambda leaf: torch.stack([leaf + k for k in range(rows)]), X)


# -- both


@pytest.mark.parametrize("request_", [Push(X), Pair(X)], ids=["Push", "Pair"])
@pytest.mark.parametrize(
    "barrier",
    [lambda it: type(it).lockstep([it, it]), lambda it: it.stacked(), lambda it: it.collective(RankGroup((1, 1)))],
    ids=["lockstep", "stacked", "collective"],
)
def test_a_request_is_refused_at_a_barrier_in_every_form(request_, barrier):
    with pytest.raises(
        ExchangeError, match=r"is a request, which one machine answers without a barrier: .*asynchronous"
    ):
        barrier(request_)


@pytest.mark.parametrize("make", [Push, lambda x: Pair(x, "star")], ids=["Push", "Pair"])
def test_stacked_requests_are_split_into_each_peers_own(make):
    for k, own in enumerate(make(stacked(3)).split()):
        torch.testing.assert_close(own.value, tree.map(lambda leaf, k=k: leaf + k, X))
        assert getattr(own, "topology", "star") == "star"


@pytest.mark.parametrize("make", [Push, Pair], ids=["Push", "Pair"])
@pytest.mark.parametrize("peers", [1, 2, 3, 7])
def test_transfers_add_up_to_what_all_peers_send(make, peers):
    assert sum(it.nbytes for it in make(X).transfers(peers)) == pytest.approx(peers * make(X).bytes(peers))


@pytest.mark.parametrize("make", [Push, Pair], ids=["Push", "Pair"])
def test_a_request_travels_there_and_back_and_nobody_waits_for_others(make):
    link = Link(latency=0.5, bandwidth=BYTES)
    assert make(X).there_and_back(link) == (1.5, 1.5) and make(X).seconds(4, link) == 3.0
    assert make(X).arrivals(torch.tensor([0.0, 10.0]), link).tolist() == [3.0, 13.0]


# -- push


def test_a_push_costs_what_it_holds_and_goes_to_the_server_that_comes_after_the_peers():
    assert Push(X).bytes(5) == BYTES
    assert [(it.source, it.target) for it in Push(X).transfers(3)] == [(0, 3), (1, 3), (2, 3)]


def test_a_push_is_taken_by_the_server_with_its_staleness():
    server = Remember(X)
    Push(X).deliver(server, 4)
    assert server.taken == [(X, 4)]


@pytest.mark.parametrize(
    ("wrong", "named"), [({**X, "w": torch.zeros(3)}, "'w'"), ({"w": X["w"]}, "'b'"), (torch.zeros(3), "'w'")]
)
def test_a_push_of_other_shapes_than_the_weights_is_refused_naming_the_parameter(wrong, named):
    with pytest.raises(ExchangeError, match=f"{named}.* the server has .*: let every peer push a tensor"):
        Push(wrong).deliver(Remember(X), 0)


# -- pair


def test_a_pair_averages():
    torch.testing.assert_close(Pair.average(X, tree.map(lambda leaf: leaf + 2, X)), tree.map(lambda leaf: leaf + 1, X))


def test_both_of_a_pair_send_unless_a_peer_has_no_neighbour():
    assert Pair(X).bytes(2) == 2 * BYTES
    assert Pair(X).bytes(1) == 0 and Pair(X).transfers(1) == []
    lonely = [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    assert Pair(X, lonely).bytes(3) == pytest.approx(2 * BYTES * 2 / 3)
    assert Pair(X, lonely).partner(2, 1, 0, 3) is None


@pytest.mark.parametrize("name", ["ring", "star", "complete", "torus"])
def test_partners_are_neighbours_all_of_them_equally_often_and_follow_from_the_seed(name):
    near, pair = topologies.choose(name, 9), Pair(X, name)
    for peer in range(9):
        met = Counter(pair.partner(peer, number, 5, 9) for number in range(800))
        neighbours = near.neighbours(peer)
        assert set(met) == set(neighbours)
        assert max(abs(count * len(neighbours) / 800 - 1) for count in met.values()) < 0.45
    drawn = [[pair.partner(0, number, seed, 9) for number in range(50)] for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] and (drawn[0] != drawn[2] or len(near.neighbours(0)) == 1)


def test_a_topology_of_another_number_of_peers_is_refused():
    with pytest.raises(ExchangeError, match="joins 2 peers, but 3 take part"):
        Pair(X, [[0.5, 0.5], [0.5, 0.5]]).partner(0, 1, 0, 3)
    with pytest.raises(SettingError, match="not doubly stochastic"):
        Pair(X, [[0.5, 0.5], [0.9, 0.1]])


# -- over a line


class Keeper:
    """A line to one who keeps a tree for each number, and remembers what was asked and told."""

    def __init__(self, kept):
        self.kept, self.seen = kept, []

    def ask(self, head, body=b""):
        self.seen.append(("ask", head, len(body)))
        return 10 + head, self.kept[head]

    def tell(self, head, body):
        self.seen.append(("tell", head, len(body)))
        self.kept[head] = body


def test_bytes_hold_exactly_the_numbers_of_a_tree_whatever_their_type():
    mixed = X | {"half": torch.randn(3).bfloat16(), "flag": torch.tensor([True, False]), "none": torch.zeros(0)}
    body = wrapped(mixed)
    assert len(body) == tree.nbytes(mixed)
    for name, leaf in unwrapped(body, mixed).items():
        assert leaf.dtype == mixed[name].dtype and torch.equal(leaf[0], mixed[name])


def test_bytes_of_another_size_is_refused():
    with pytest.raises(
        ExchangeError, match=f"sends 12 bytes where a model of {BYTES} is kept: give all peers the same"
    ):
        unwrapped(wrapped(torch.zeros(3)), X)


def test_peers_of_one_machine_push_together_and_receive_one_answer():
    line = Keeper({3: wrapped(X)})
    reply = Push(stacked(3)).ask(line, X)
    assert line.seen == [("ask", 3, 3 * BYTES)]
    torch.testing.assert_close(reply, tree.map(lambda leaf: leaf.unsqueeze(0), X))


@pytest.mark.parametrize(("peer", "partner"), [(2, 5), (5, 2)])
def test_a_pair_borrows_both_the_lower_first_and_gives_both_back(peer, partner):
    """xᵢ = X, xⱼ = X + 2 and uᵢ = X: afterwards xᵢ = 2X + 1 and xⱼ = X + 1."""
    line = Keeper({peer: wrapped(X), partner: wrapped(tree.map(lambda leaf: leaf + 2, X))})
    mine, changes = Pair(X).meet(peer, partner, lambda k: line)
    assert line.seen[:2] == [("ask", 2, 0), ("ask", 5, 0)]
    assert sorted(line.seen[2:]) == [("tell", 2, BYTES), ("tell", 5, BYTES)]
    torch.testing.assert_close(mine, tree.map(lambda leaf: 2 * leaf + 1, X))
    assert line.kept[peer] == wrapped(mine) and line.kept[partner] == wrapped(tree.map(lambda leaf: leaf + 1, X))
    assert changes == 10 + peer


def test_a_peer_without_a_neighbour_borrows_its_own_only():
    line = Keeper({4: wrapped(X)})
    mine, _ = Pair(X).meet(4, None, lambda k: line)
    torch.testing.assert_close(mine, tree.map(lambda leaf: 2 * leaf, X))
    assert line.seen == [("ask", 4, 0), ("tell", 4, BYTES)]
