"""A private mean moves little for any one peer; a secure one shows what was sent to nobody."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import labkit as lk
from labkit.algorithms import AllReduce, Private, Secure
from labkit.errors import ExchangeError, SettingError
from labkit.exchange import Gather, ModularSum
from labkit.exchange.privacy import epsilon
from tests.algorithms.hand import Drift, Tell, alone, in_a_stack, in_lockstep, stacked
from tests.engines.experiments import result

# -- private


def private_reply(values, start=None, number=1, **settings):
    peers = alone(len(values), number=number)
    in_lockstep(Private(Tell({"w": values}, start=start), **settings), peers)
    assert all(torch.equal(peer.state["reply"]["w"], peers[0].state["reply"]["w"]) for peer in peers)
    return peers[0].state["reply"]["w"]


def test_each_peer_is_clipped_to_the_norm_before_the_mean():
    values = torch.tensor([[30.0, 40.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(private_reply(values, clip=1.0, noise=0.0), torch.tensor([0.9, 1.2]) / 3)


def test_the_norm_is_that_of_all_parameters_together():
    (peer,) = peers = alone(1)
    in_lockstep(Private(Tell({"w": torch.tensor([[3.0]]), "b": torch.tensor([[4.0]])}), clip=1.0, noise=0.0), peers)
    assert (peer.state["reply"]["w"].item(), peer.state["reply"]["b"].item()) == pytest.approx((0.6, 0.8))


def test_the_change_since_the_start_is_clipped_not_the_parameters():
    values, start = torch.tensor([[103.0, 104.0]]), {"w": torch.tensor([100.0, 100.0])}
    torch.testing.assert_close(private_reply(values, start, clip=1.0, noise=0.0), torch.tensor([100.6, 100.8]))


def test_weights_are_left_out():
    peers = alone(2)
    in_lockstep(Private(Tell({"w": torch.tensor([[0.0], [1.0]])}, weights=torch.tensor([1.0, 9.0])), 1.0, 0.0), peers)
    assert peers[0].state["reply"]["w"].item() == 0.5


def test_one_peer_with_other_data_moves_the_mean_by_twice_the_clip_over_n_at_most():
    values = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    other = torch.cat([values[:4], -1000 * values[4:]])
    moved = private_reply(values, clip=2.0, noise=0.5) - private_reply(other, clip=2.0, noise=0.5)
    assert moved.norm().item() == pytest.approx(2 * 2.0 / 5, rel=1e-4)


def test_the_noise_has_the_deviation_of_the_formula_and_is_new_in_each_round():
    still = torch.zeros(4, 50_000)
    noisy = private_reply(still, clip=2.0, noise=3.0)
    assert noisy.std().item() == pytest.approx(3.0 * 2.0 / 4, rel=0.02)
    assert noisy.mean().item() == pytest.approx(0, abs=0.05)
    assert not torch.equal(noisy, private_reply(still, number=2, clip=2.0, noise=3.0))


def test_stacked_peers_get_the_noise_that_separate_peers_get():
    values = {"w": torch.randn(3, 9)}
    peers, stack = alone(3), stacked(3)
    in_lockstep(Private(Tell(values)), peers)
    in_a_stack(Private(Tell(values)), stack)
    torch.testing.assert_close(stack.state["reply"]["w"][0], peers[1].state["reply"]["w"])


def test_epsilon_follows_the_share_of_peers_that_the_inner_algorithm_lets_take_part():
    everyone, some = Private(Drift(), noise=1.1), Private(Drift(participation=0.1), noise=1.1)
    assert everyone.epsilon(5, 100, 1e-5) == epsilon(1.1, 5, 100, 100, 1e-5)
    assert some.epsilon(5, 100, 1e-5, "poisson") == epsilon(1.1, 5, 100, 10, 1e-5, "poisson")
    assert some.epsilon(5, 100, 1e-5) < everyone.epsilon(5, 100, 1e-5) < math.inf


@pytest.mark.parametrize("clip", [0, -1.0, math.nan, math.inf])
def test_a_clip_that_is_no_length_is_refused(clip):
    with pytest.raises(SettingError, match=r"clip is .*; give a number above 0"):
        Private(AllReduce(), clip=clip)


@pytest.mark.parametrize("noise", [-0.1, math.nan, math.inf])
def test_noise_that_is_none_is_refused(noise):
    with pytest.raises(SettingError, match=r"noise is .*; give a number from 0 on"):
        Private(AllReduce(), noise=noise)


def test_a_private_model_learns_with_enough_peers():
    run = result(lk.Simulator(), Private(Drift(every=4), clip=0.5, noise=0.5), peers=50, rounds=60)
    assert run.final.accuracy > 0.7


# -- secure


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 3.0, 0.0])], ids=["alike", "weighted"])
@pytest.mark.parametrize("start", [None, {"w": torch.full((50,), 7.0)}], ids=["as they are", "changes"])
def test_the_secure_mean_is_the_plain_one(weights, start):
    values = {"w": torch.randn(4, 50, generator=torch.Generator().manual_seed(2))}
    w = torch.ones(4) if weights is None else weights
    expected = (w[:, None] * values["w"]).sum(0) / w.sum()
    for run, peers in ((in_lockstep, alone(4)), (in_a_stack, stacked(4))):
        run(Secure(Tell(values, weights, start)), peers)
        reply = (peers[0] if isinstance(peers, list) else peers).state["reply"]["w"]
        torch.testing.assert_close(reply.reshape(50), expected, atol=1e-6, rtol=0)


def test_no_message_shows_what_was_sent_nor_its_weight():
    one = {"w": torch.zeros(3, 2000)}
    other = {"w": torch.ones(3, 2000)}
    weights = torch.ones(3)
    for values in (one, other):
        (met,) = in_lockstep(Secure(Tell(values, weights)), alone(3))
        for message in met:
            assert isinstance(message, ModularSum) and message.x.dtype == torch.int64
            share = message.x.double() / 2.0**64 + 0.5
            assert share.mean().item() == pytest.approx(0.5, abs=0.03)
            assert share.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.05)
            assert abs(int(message.x[-1])) > 2**40  # the weight of one, masked
    assert all(not torch.equal(a.x, b.x) for a, b in pairwise(met))


def test_those_who_take_part_tell_each_other_so_and_mask_among_themselves():
    values = {"w": torch.arange(10.0).unsqueeze(-1)}
    present = [7, 2, 4]
    peers, stack = alone(10, present), stacked(10, present)
    told, summed = in_lockstep(Secure(Tell(values)), peers)
    assert isinstance(told[0], Gather) and isinstance(summed[0], ModularSum)
    in_a_stack(Secure(Tell(values)), stack)
    assert peers[0].state["reply"]["w"].item() == pytest.approx(13 / 3)
    assert stack.state["reply"]["w"].item() == pytest.approx(13 / 3)


def test_one_peer_alone_gets_its_own():
    (peer,) = peers = alone(1)
    in_lockstep(Secure(Tell({"w": torch.tensor([[1.5]])})), peers)
    assert peer.state["reply"]["w"].item() == 1.5


def test_numbers_beyond_the_fixed_point_are_refused():
    with pytest.raises(ExchangeError, match="does not fit into the fixed point of secure aggregation"):
        in_lockstep(Secure(Tell({"w": torch.full((3, 2), 1e13)})), alone(3))


def test_weights_that_add_up_to_nothing_are_refused():
    with pytest.raises(ExchangeError, match="weights of a secure mean add up to nothing"):
        in_lockstep(Secure(Tell({"w": torch.ones(3, 2)}, torch.zeros(3))), alone(3))


@pytest.mark.parametrize("neighbours", [0, 1, 3, 2.0])
def test_neighbours_that_do_not_stand_on_either_side_are_refused(neighbours):
    with pytest.raises(SettingError, match=r"is not an even number of at least 2|neighbours is .* at least 2"):
        Secure(AllReduce(), neighbours)
