"""Each message: lockstep and stacked give what the formula says, and the cost is the published one."""

from __future__ import annotations

import pytest
import torch

from labkit.costs.link import Link
from labkit.errors import ExchangeError
from labkit.exchange import Gather, Mean


def stack(trees):
    return {name: torch.stack([tree[name] for tree in trees]) for name in trees[0]}


@pytest.fixture
def values():
    generator = torch.Generator().manual_seed(0)
    return [{"w": torch.randn(3, 2, generator=generator), "b": torch.randn(2, generator=generator)} for _ in range(4)]


def test_mean_is_the_average_of_all_peers(values):
    for reply in Mean.lockstep([Mean(value) for value in values]):
        torch.testing.assert_close(reply["w"], sum(value["w"] for value in values) / 4)


def test_weighted_mean_counts_each_peer_by_its_weight():
    replies = Mean.lockstep([Mean(torch.tensor([1.0]), weight=1), Mean(torch.tensor([5.0]), weight=3)])
    assert [reply.item() for reply in replies] == [4.0, 4.0]


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 0.5]])
def test_stacked_mean_equals_lockstep(values, weights):
    each = [None] * 4 if weights is None else weights
    together = None if weights is None else torch.tensor(weights)
    expected = Mean.lockstep([Mean(value, w) for value, w in zip(values, each, strict=True)])
    torch.testing.assert_close(Mean(stack(values), together).stacked(), stack(expected[:1]))  # the same for all: [1, …]


def test_stacked_gather_equals_lockstep(values):
    expected = Gather.lockstep([Gather(value) for value in values])
    torch.testing.assert_close(Gather(stack(values)).stacked(), stack(expected[:1]))  # [1, n, …]


def test_mean_of_different_shapes_is_refused_naming_the_parameter():
    with pytest.raises(ExchangeError, match=r"'w'.*same model"):
        Mean.lockstep([Mean({"w": torch.zeros(2)}), Mean({"w": torch.zeros(3)})])


def test_replies_are_separate_tensors_so_that_one_peer_cannot_change_another(values):
    first, second, *_ = Mean.lockstep([Mean(value) for value in values])
    first["w"].zero_()
    assert second["w"].abs().sum() > 0


@pytest.mark.parametrize("peers", [1, 2, 3, 8])
def test_mean_costs_the_all_reduce_lower_bound(peers):
    message = Mean({"w": torch.zeros(1000)})
    assert message.bytes(peers) == pytest.approx(2 * (peers - 1) / peers * 4000)
    link = Link(latency=1e-3, bandwidth=1e6)
    assert message.seconds(peers, link) == pytest.approx(2 * (peers - 1) * 1e-3 + message.bytes(peers) / 1e6)


def test_gather_costs_what_the_other_peers_hold():
    assert Gather(torch.zeros(10)).bytes(5) == 4 * 40


def test_a_stacked_message_costs_what_one_peer_sends(values):
    assert Mean(stack(values)).row().bytes(4) == Mean(values[0]).bytes(4)


def test_lift_adds_the_peer_dimension_that_collectives_expect(values):
    lifted = Mean(values[0], weight=2.0).lift()
    assert lifted.x["w"].shape == (1, 3, 2)
    torch.testing.assert_close(lifted.stacked()["w"][0], values[0]["w"])
