"""Experts and stretches of sequences on several peers give what one model gives that is whole everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce, ExpertParallel, Mesh, Pipeline, SequenceParallel
from labkit.data import Replicated
from labkit.errors import ModelError, SettingError
from labkit.models import GPT, MoE, next_token
from tests.algorithms.test_large import ENGINES, OPTIMIZERS, characters, distance, gpt, trained


def mixture(capacity=None, experts=4):
    torch.manual_seed(0)
    moe = MoE(12, experts, inner=20, capacity=capacity)
    return nn.Sequential(nn.Linear(64, 12), nn.LayerNorm(12), moe, nn.Linear(12, 10))


def experts_gpt(**settings):
    torch.manual_seed(0)
    return GPT(2, 16, 4, vocab=11, seq=8, experts=4, **settings)


# -- experts


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("peers", "capacity"), [(4, None), (2, 1.0)])
def test_expert_parallel_is_all_reduce(peers, capacity, optimizer, engine):
    """Also where tokens are left out, by each peer's own batch."""
    model, data = mixture(capacity), lk.data.load("digits")
    whole = trained(model, data, AllReduce(), optimizer, peers=peers, on=lk.Lockstep())
    split = trained(model, data, ExpertParallel(), optimizer, peers=peers, on=ENGINES[engine])
    assert distance(whole, split) < 1e-5
    assert split.final.accuracy == pytest.approx(whole.final.accuracy, abs=1e-6)
    assert split.final.test_loss == pytest.approx(whole.final.test_loss, abs=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("capacity", [None, 1.25])
def test_the_experts_of_a_language_model_are_shared_out(capacity, engine):
    model, settings = experts_gpt(capacity=capacity), {"loss": next_token, "peers": 4}
    whole = trained(model, characters(), AllReduce(), "adamw", on=lk.Lockstep(), **settings)
    split = trained(model, characters(), ExpertParallel(), "adamw", on=ENGINES[engine], **settings)
    assert distance(whole, split) < 1e-5


def test_one_process_on_the_joined_batch_is_the_same_where_nobody_is_left_out():
    """Of a batch as large as those of all peers together, which one process routes as a whole."""
    model, data = mixture(), lk.data.load("digits")
    split = trained(model, data, ExpertParallel(), peers=4, batch_size=2, shards=Replicated())
    one = trained(model, data, AllReduce(), peers=1, batch_size=2, shards=Replicated())
    assert distance(one, split) < 1e-5


def test_a_peer_holds_some_experts_and_all_else():
    seen = []

    class Looking(ExpertParallel):
        def round(self, peer, batches):
            seen.append({name: tuple(p.shape) for name, p in peer.params.items() if "2." in name})
            yield from super().round(peer, batches)

    trained(mixture(), lk.data.load("digits"), Looking(), peers=2, rounds=1, on=lk.Lockstep())
    assert seen == [{"2.router.weight": (4, 12), "2.experts.up": (2, 12, 20), "2.experts.down": (2, 20, 12)}] * 2


@pytest.mark.parametrize(("capacity", "room"), [(None, 8), (1.0, 2), (1.3, 3)])
def test_experts_send_what_they_have_room_for_four_times_and_sum_the_rest(capacity, room):
    """There and back, forward and backward; 8 tokens, 4 experts."""
    model, n = mixture(capacity), 4
    split = trained(model, lk.data.load("digits"), ExpertParallel(), peers=n, rounds=5, batch_size=8)
    copied = 4 * sum(p.numel() for name, p in model.named_parameters() if "experts" not in name)
    assert split.bytes == pytest.approx(5 * (4 * (n - 1) / n * 4 * room * 12 * 4 + 2 * (n - 1) / n * copied))


def test_a_capacity_leaves_out_those_who_come_too_late():
    moe = MoE(4, experts=2, capacity=0.5)
    with torch.no_grad():
        moe.router.weight.copy_(torch.eye(2, 4))
    tokens = torch.tensor([[5.0, 0, 1, 1], [0, 5.0, 1, 1], [5.0, 0, 2, 1], [5.0, 0, 1, 2]])  # to 0, 1, 0, 0; room for 1
    assert [bool(row.any()) for row in moe(tokens)] == [True, True, False, False]
    moe.capacity = None
    expected = torch.stack([moe(row.unsqueeze(0))[0] for row in tokens])
    torch.testing.assert_close(moe(tokens), expected)


@pytest.mark.parametrize(
    ("model", "peers", "said"),
    [
        (mixture(experts=6), 4, r"'2.experts.up' has 6 experts, which 4 peers cannot share out evenly: .*divides 6"),
        (nn.Linear(64, 10), 2, r"The model has no experts that peers could share out: .*MoE"),
        (gpt(), 2, r"no experts that peers could share out"),
    ],
)
def test_experts_that_cannot_be_shared_out_are_refused(model, peers, said):
    with pytest.raises(ModelError, match=said):
        lk.train(model, lk.data.load("digits"), ExpertParallel(), peers=peers, rounds=1)


def test_numbers_of_experts_that_are_none_are_refused():
    for wrong in ({"experts": 0}, {"experts": 2, "capacity": 0}, {"experts": 2, "inner": 0}):
        with pytest.raises(SettingError):
            MoE(8, **wrong)
    with pytest.raises(SettingError, match="width is 0"):
        MoE(0, 2)


def test_experts_have_nothing_to_do_with_no_tokens():
    assert MoE(8, 4)(torch.zeros(0, 8)).shape == (0, 8)


@pytest.mark.parametrize("algorithm", [SequenceParallel(), Pipeline(2), Mesh(sequence=2), Mesh(pipeline=2)], ids=repr)
def test_room_by_the_batch_is_not_for_peers_that_see_parts_of_it(algorithm):
    """However seldom it is that somebody is left out: with room for all at the start, it would come later."""
    settings = {"loss": next_token, "peers": 2, "rounds": 1, "batch_size": 8}
    with pytest.raises(ModelError, match=r"'blocks.0.mlp' leaves tokens out .*: give it no capacity, or take Expert"):
        lk.train(experts_gpt(capacity=3.9), characters(), algorithm, **settings)
    lk.train(experts_gpt(), characters(), algorithm, **settings).result()


# -- sequences


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("peers", "optimizer"), [(1, "sgd"), (2, "sgd"), (4, "momentum"), (8, "adamw")])
def test_sequence_parallel_is_one_process(peers, optimizer, engine):
    settings = {"loss": next_token, "shards": Replicated()}
    whole = trained(gpt(), characters(), AllReduce(), optimizer, peers=1, on=lk.Lockstep(), **settings)
    split = trained(gpt(), characters(), SequenceParallel(), optimizer, peers=peers, on=ENGINES[engine], **settings)
    assert distance(whole, split) < 1e-5
    assert split.final.test_loss == pytest.approx(whole.final.test_loss, abs=1e-5)
    assert split.final.loss == pytest.approx(whole.final.loss, abs=1e-5)  # the mean over the stretches


def test_a_tied_embedding_is_both_on_every_peer():
    settings = {"loss": next_token, "shards": Replicated(), "peers": 2}
    whole = trained(gpt(tied=True), characters(), AllReduce(), "adamw", **settings | {"peers": 1})
    assert distance(whole, trained(gpt(tied=True), characters(), SequenceParallel(), "adamw", **settings)) < 1e-5


def test_ring_attention_sends_keys_and_values_round_and_their_gradients_back():
    """(n − 1) steps of 2 · B · T/n · width numbers a layer, twice; and the gradients' all-reduce."""
    model, n, layers = gpt(), 4, 2
    split = trained(model, characters(), SequenceParallel(), peers=n, rounds=5, batch_size=8, loss=next_token)
    size = 4 * sum(p.numel() for p in model.parameters())
    assert split.bytes == pytest.approx(5 * (2 * (n - 1) / n * size + layers * 2 * (n - 1) * 2 * 8 * (8 / n) * 16 * 4))


@pytest.mark.parametrize("large", [1.0, 1e3])
def test_the_online_softmax_does_not_overflow(large):
    """Scores of thousands, whose exponentials are infinite."""
    model = gpt()
    with torch.no_grad():
        for block in model.blocks:
            block.att.q.weight *= large
    settings = {"loss": next_token, "shards": Replicated(), "rounds": 2}
    whole = trained(model, characters(), AllReduce(), peers=1, **settings)
    assert distance(whole, trained(model, characters(), SequenceParallel(), peers=4, **settings)) < 1e-5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"peers": 3}, r"A sequence of 8 tokens is not divided by 3 peers: .*divides 8"),
        ({"model": nn.Linear(8, 11)}, r"Linear has no attention that could go round a ring of peers: .*GPT"),
        (
            {
                "dataset": lk.data.from_tensors(
                    torch.zeros(80, 8, dtype=torch.int64), torch.zeros(80, dtype=torch.int64)
                )
            },
            r"are not one for each token",
        ),
    ],
)
def test_what_cannot_go_round_a_ring_is_refused(given, said):
    settings = {"model": gpt(), "dataset": characters(), "algorithm": SequenceParallel(), "peers": 2, "rounds": 2}
    with pytest.raises((ModelError, SettingError), match=said):
        lk.train(**settings | {"loss": next_token} | given)
