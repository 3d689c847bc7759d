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


@pytest.mark.parametrize("message", [Mean(torch.zeros(10)), Mean(torch.zeros(10), 2.0), Gather(torch.zeros(10))])
@pytest.mark.parametrize("peers", [1, 2, 5])
def test_transfers_add_up_to_what_all_peers_send(message, peers):
    assert sum(it.nbytes for it in message.transfers(peers)) == pytest.approx(peers * message.bytes(peers))


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [-1.0, -2.0], [float("nan"), 1.0]])
def test_weights_that_add_up_to_nothing_are_refused(weights):
    x = torch.ones(2, 3)
    for use in (
        lambda: Mean(x, torch.tensor(weights)).stacked(),
        lambda: Mean.lockstep([Mean(row, weight) for row, weight in zip(x, weights, strict=True)]),
    ):
        with pytest.raises(ExchangeError, match=r"weights of a weighted mean add up to .* above zero"):
            use()


def test_each_tensor_of_a_mean_keeps_its_dtype_and_whole_numbers_become_real():
    x = {"half": torch.ones(2, 3, dtype=torch.bfloat16), "double": torch.ones(2, dtype=torch.float64)}
    x["whole"] = torch.tensor([1, 2])
    dtypes = {"half": torch.bfloat16, "double": torch.float64, "whole": torch.float32}
    rows = [{name: leaf[i] for name, leaf in x.items()} for i in range(2)]
    for weight in (None, 1.0):
        stacked = Mean(x, None if weight is None else torch.ones(2)).stacked()
        assert {name: leaf.dtype for name, leaf in stacked.items()} == dtypes
        assert stacked["whole"].tolist() == [1.5]
        reply, _ = Mean.lockstep([Mean(row, weight) for row in rows])
        assert {name: leaf.dtype for name, leaf in reply.items()} == dtypes and reply["whole"].item() == 1.5


def test_where_peers_set_out_from_is_not_sent(values):
    message = Mean(values[0], start=values[1])
    assert message.lift().start is None
    assert message.bytes(4) == Mean(values[0]).bytes(4)


def test_gather_costs_what_the_other_peers_hold():
    assert Gather(torch.zeros(10)).bytes(5) == 4 * 40


def test_a_stacked_message_costs_what_one_peer_sends(values):
    assert Mean(stack(values)).row().bytes(4) == Mean(values[0]).bytes(4)


def test_lift_adds_the_peer_dimension_that_collectives_expect(values):
    lifted = Mean(values[0], weight=2.0).lift()
    assert lifted.x["w"].shape == (1, 3, 2)
    torch.testing.assert_close(lifted.stacked()["w"][0], values[0]["w"])
