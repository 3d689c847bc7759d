"""Compression with error feedback: nothing is lost for ever, and learning shows it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st

import labkit as lk
from labkit.algorithms import AllReduce, Compressed, LocalSGD
from labkit.errors import SettingError
from labkit.exchange import QSGD, Coded, Half, HalfMean, Kind, Mean, RandomK, Sign, TopK
from tests.algorithms.hand import Tell, alone, in_a_stack, in_lockstep, stacked
from tests.engines.experiments import result
from tests.examples import few

CONTRACTIONS = [TopK(0.1), RandomK(0.1), Sign(), Half("fp16"), Half("bf16"), QSGD(127)]
SIZE = 60
ERROR = f"error 0 of {SIZE} gradients w"  # under which it is kept


def rounds_of(values, algorithm_of, run, peers, rounds):
    """What was sent on each round [rounds, n, P], decoded, when peers' values are `values` [rounds, n, P]."""
    sent = []
    for number in range(rounds):
        for peer in peers if isinstance(peers, list) else [peers]:
            peer.number = number + 1
        (met,) = run(algorithm_of({"w": values[number]}), peers)
        met = met if isinstance(met, list) else [met]
        sent.append(torch.stack([_decoded(message) for message in met]).reshape(values.shape[1:]))
    return torch.stack(sent)


def _decoded(message):
    if isinstance(message, Coded):
        return message.code.decode(message.packed)
    assert isinstance(message, HalfMean)
    return message.x.float()


@pytest.mark.parametrize("compressor", [c for c in CONTRACTIONS if not c.linear], ids=repr)
@given(seed=st.integers(0, 1000), rounds=st.integers(1, 6))
@few
def test_what_was_sent_and_the_error_that_is_kept_add_up_to_what_was_wanted(compressor, seed, rounds):
    values = torch.randn(rounds, 3, SIZE, generator=torch.Generator().manual_seed(seed))
    for run, peers in ((in_lockstep, alone(3)), (in_a_stack, stacked(3))):
        sent = rounds_of(values, lambda it: Compressed(Tell(it), compressor, feedback=True), run, peers, rounds)
        kept = peers.state if not isinstance(peers, list) else {}
        error = kept.get(ERROR) if kept else torch.stack([p.state[ERROR] for p in peers])
        torch.testing.assert_close(sent.sum(0) + error, values.sum(0), atol=1e-4, rtol=1e-5)


def test_random_places_too_leave_an_error_that_makes_up_for_what_was_not_sent():
    values = torch.randn(5, 3, SIZE, generator=torch.Generator().manual_seed(0))
    peers, replies = alone(3), torch.zeros(SIZE)
    for number, told in enumerate(values, start=1):
        for peer in peers:
            peer.number = number
        (met,) = in_lockstep(Compressed(Tell({"w": told}), RandomK(0.1)), peers)
        assert all(isinstance(message, Mean) and message.x.shape == (6,) for message in met)
        replies += peers[0].state["reply"]["w"]
    errors = torch.stack([peer.state[ERROR] for peer in peers])
    torch.testing.assert_close(replies + errors.mean(0), values.mean(1).sum(0), atol=1e-5, rtol=1e-5)


def test_the_change_since_the_start_is_compressed_and_the_start_added_back():
    start = {"w": torch.full((SIZE,), 100.0)}
    values = {"w": 100.0 + torch.eye(2, SIZE)}
    for run, peers in ((in_lockstep, alone(2)), (in_a_stack, stacked(2))):
        (met,) = run(Compressed(Tell(values, start=start), TopK(1 / SIZE)), peers)
        first = met[0] if isinstance(met, list) else met
        assert first.packed["values"].flatten().tolist() == [1.0] * first.packed["values"].numel()
        reply = (peers[0] if isinstance(peers, list) else peers).state["reply"]["w"]
        torch.testing.assert_close(reply.flatten()[:3], torch.tensor([100.5, 100.5, 100.0]))


def test_each_mean_of_a_round_has_an_error_of_its_own():
    class Two:
        def round(self, peer, batches):
            yield Mean(torch.ones(SIZE), kind=Kind.GRADIENT)
            yield Mean(torch.ones(SIZE // 2), kind=Kind.GRADIENT)

    (peer,) = peers = alone(1)
    in_lockstep(Compressed(Two(), TopK(0.1)), peers)
    assert {name: error.shape for name, error in peer.state.items()} == {
        "error 0 of 60 gradients": (SIZE,),
        "error 0 of 30 gradients": (SIZE // 2,),
    }


@pytest.mark.parametrize(
    ("compressor", "feedback"),
    [(TopK(), True), (RandomK(), True), (Sign(), True), (Half(), True), (QSGD(), False)],
    ids=repr,
)
def test_errors_are_fed_back_unless_the_compressor_is_unbiased(compressor, feedback):
    assert Compressed(AllReduce(), compressor).feeds_back is feedback
    assert not Compressed(AllReduce(), RandomK(unbiased=True)).feeds_back


@pytest.mark.parametrize("compressor", [QSGD(7), RandomK(0.2, unbiased=True)], ids=repr)
def test_feedback_of_an_error_that_may_grow_is_refused(compressor):
    with pytest.raises(SettingError, match=r"may be larger than the 60 numbers .*: give more levels or a larger share"):
        in_lockstep(Compressed(Tell({"w": torch.ones(2, SIZE)}), compressor, feedback=True), alone(2))


def test_what_is_no_compressor_is_refused():
    with pytest.raises(SettingError, match=r"0\.01 is no compressor: give labkit\.exchange\.TopK\(0\.01\)"):
        Compressed(AllReduce(), 0.01)


SETTINGS = {"peers": 8, "rounds": 120, "batch_size": 32, "optimizer": partial(torch.optim.SGD, lr=0.3)}


@pytest.fixture(scope="module")
def plain():
    return result(lk.Simulator(), AllReduce(), **SETTINGS)


@pytest.mark.parametrize(
    ("compressor", "cost"),
    [(TopK(0.01), 0.02 * 4), (Sign(), 1 / 32 * 4), (QSGD(7), 1 / 8 * 4), (Half(), 1 / 2)],
    ids=repr,
)
def test_training_learns_within_three_points_of_the_plain_mean_at_the_stated_share_of_the_bytes(
    plain, compressor, cost
):
    # Codes go to all others, (n − 1) times, where an all-reduce sends 2(n − 1)/n times as much: n/2 = 4 times more.
    run = result(lk.Simulator(), Compressed(AllReduce(), compressor), **SETTINGS)
    assert run.bytes == pytest.approx(cost * plain.bytes, rel=0.02)
    assert run.final.accuracy > plain.final.accuracy - 0.03 > 0.88


@pytest.mark.parametrize("compressor", [TopK(0.01), Sign()], ids=repr)
def test_training_is_worse_without_feedback(compressor):
    kept, lost = (
        result(lk.Simulator(), Compressed(AllReduce(), compressor, feedback), **SETTINGS) for feedback in (True, False)
    )
    assert kept.final.accuracy > lost.final.accuracy + 0.02


def test_parameters_without_a_start_are_compressed_as_they_are():
    run = result(lk.Lockstep(), Compressed(LocalSGD(every=2), Half("bf16")), rounds=2)
    assert run.bytes == result(lk.Lockstep(), LocalSGD(every=2), rounds=2).bytes / 2
