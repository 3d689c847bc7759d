"""What takes the place of a mean: coded, halved, robust and masked ones are the same in all forms, at stated cost."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import labkit as lk
from labkit import tree
from labkit.cluster.local import local_cluster
from labkit.costs.link import Link
from labkit.errors import ExchangeError
from labkit.exchange import (
    QSGD,
    Coded,
    CoordinateMedian,
    Half,
    HalfMean,
    Krum,
    Mean,
    ModularSum,
    RandomK,
    RobustMean,
    Sign,
    TopK,
    TrimmedMean,
)
from labkit.exchange.group import RankGroup
from tests.exchange.test_collectives import EVERY_FORM

SIZE = 37  # neither a multiple of a byte's bits nor of the ranks
KEY = 5
COMPRESSORS = [TopK(0.2), RandomK(0.3), RandomK(0.3, unbiased=True), Sign(), QSGD(1), QSGD(7), QSGD(127)]
HALVES = [Half("fp16"), Half("bf16")]


def vectors(peers, size=SIZE):
    return torch.randn(peers, size, generator=torch.Generator().manual_seed(peers))


def compressed(compressor, peers, weighted=False):
    x = vectors(peers)
    mean = Mean(x, torch.arange(1.0, peers + 1) if weighted else None)
    return compressor.message(mean, compressor.encode(x, KEY, torch.arange(peers)), SIZE, KEY)


MESSAGES = {
    **{repr(c): lambda n, c=c: compressed(c, n) for c in COMPRESSORS + HALVES},
    **{f"{c!r}, weighted": lambda n, c=c: compressed(c, n, True) for c in COMPRESSORS + HALVES},
    **{
        repr(rule): lambda n, rule=rule: RobustMean({"w": vectors(n).view(n, 1, SIZE), "b": vectors(n, 2)}, rule)
        for rule in (CoordinateMedian(), TrimmedMean(0), TrimmedMean(1), Krum(0, keep=2))
    },
    **{
        f"ModularSum {form}": lambda n, form=form: ModularSum(torch.arange(n * SIZE).view(n, SIZE) << 50, form)
        for form in EVERY_FORM
    },
}


def rows(message, first, last):
    return message._each(lambda leaf: leaf[first:last])


def exchange_all(blocks):
    """One rank: of each kind of message the reply, and the bytes in its ledger."""
    answers = {}
    for kind, made in MESSAGES.items():
        group = RankGroup(blocks)
        answers[kind] = rows(made(sum(blocks)), *group.bounds(group.rank)).collective(group), group.sent
    return answers


@pytest.fixture(scope="module")
def trio():
    with local_cluster(3, threads=1, memory=4 << 30) as cluster, lk.connect(cluster) as lab:
        yield lab


@pytest.fixture(scope="module", params=[(1, 1, 1), (3, 1, 1), (2, 0, 3), (0, 0, 4)], ids=str)
def exchanged(trio, request):
    return request.param, trio.launch(exchange_all, request.param).result()


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("peers", [3, 5])
def test_stacked_peers_get_what_peers_in_lockstep_get(kind, peers):
    together = MESSAGES[kind](peers)
    expected = type(together).lockstep([rows(together, k, k + 1).row() for k in range(peers)])
    for reply in expected:
        torch.testing.assert_close(tree.map(lambda x: x[0], together.stacked()), reply, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", MESSAGES)
def test_replies_over_a_process_group_are_those_of_stacked_peers(exchanged, kind):
    blocks, ranks = exchanged
    expected = MESSAGES[kind](sum(blocks)).stacked()
    for rank in ranks:
        torch.testing.assert_close(rank[kind][0], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("exchanged", [(1, 1, 1)], indirect=True, ids=str)
@pytest.mark.parametrize("kind", MESSAGES)
def test_the_ledger_is_the_formula(exchanged, kind):
    message = MESSAGES[kind](3).row()
    sent = [rank[kind][1] for rank in exchanged[1]]
    assert sum(sent) == pytest.approx(3 * message.bytes(3))
    if not isinstance(message, Mean | ModularSum) or message.form != "native":  # whose chunks only torch knows
        by_source = [sum(it.nbytes for it in message.transfers(3) if it.source == rank) for rank in range(3)]
        assert sent == pytest.approx(by_source)


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("peers", [3, 4, 7])
def test_transfers_add_up_to_the_bytes_of_all_peers(kind, peers):
    message = MESSAGES[kind](peers).row()
    assert sum(it.nbytes for it in message.transfers(peers)) == pytest.approx(peers * message.bytes(peers))


@pytest.mark.parametrize("kind", MESSAGES)
def test_seconds_grow_with_latency_and_with_bytes(kind):
    message = MESSAGES[kind](4).row()
    assert message.seconds(1, Link(1.0, 1.0)) == 0
    assert message.seconds(4, Link(latency=0.0, bandwidth=1e6)) < message.seconds(4, Link(0.0, 1e5))
    assert message.seconds(4, Link(latency=1e-3)) < message.seconds(4, Link(latency=2e-3))


@pytest.mark.parametrize("peers", [2, 3, 10])
def test_coded_means_cost_an_all_gather_of_the_code(peers):
    message = compressed(Sign(), peers).row()
    assert isinstance(message, Coded)
    assert message.bytes(peers) == (peers - 1) * (5 + 4)  # 37 bits and a scale
    assert message.seconds(peers, Link(1e-3, 1e3)) == pytest.approx((peers - 1) * (1e-3 + 9e-3))
    assert compressed(Sign(), peers, weighted=True).row().bytes(peers) == (peers - 1) * (5 + 4 + 4)


@pytest.mark.parametrize("peers", [2, 3, 10])
@pytest.mark.parametrize("compressor", HALVES, ids=repr)
def test_half_precision_costs_half_of_the_plain_mean_at_every_number_of_peers(compressor, peers):
    half, plain = compressed(compressor, peers).row(), Mean(vectors(peers)).row()
    assert half.bytes(peers) == plain.bytes(peers) / 2
    link = Link(1e-3, 1e3)
    assert half.seconds(peers, link) == pytest.approx((link.latency * 2 * (peers - 1) + plain.seconds(peers, link)) / 2)


@pytest.mark.parametrize("peers", [2, 3, 10])
def test_random_places_cost_their_share_of_the_plain_mean_because_they_need_not_travel(peers):
    message = compressed(RandomK(0.3), peers).row()
    assert message.bytes(peers) == pytest.approx(11 / SIZE * Mean(vectors(peers)).row().bytes(peers))


@pytest.mark.parametrize("peers", [2, 3, 10])
def test_masked_sums_cost_twice_the_plain_mean_and_robust_ones_an_all_gather(peers):
    masked = ModularSum(torch.zeros(SIZE, dtype=torch.int64))
    assert masked.bytes(peers) == 2 * Mean(torch.zeros(SIZE)).bytes(peers)
    assert RobustMean(torch.zeros(SIZE), CoordinateMedian()).bytes(peers) == (peers - 1) * 4 * SIZE


def test_a_half_mean_is_rounded_once_to_its_16_bits():
    values = torch.tensor([[1.0], [1.0 + 2**-10], [1.0 + 2**-10]]).half()  # neighbours in fp16
    assert HalfMean(values).stacked().item() == 1.0 + 2**-10  # 1 + ⅔ · 2⁻¹⁰, rounded to the nearest


def test_a_robust_mean_of_different_shapes_is_refused_naming_the_parameter():
    messages = [RobustMean({"w": torch.zeros(n)}, CoordinateMedian()) for n in (2, 3)]
    with pytest.raises(ExchangeError, match=r"'w'.*same model"):
        RobustMean.lockstep(messages)


def test_replies_are_separate_tensors_so_that_one_peer_cannot_change_another():
    for made in MESSAGES.values():
        together = made(3)
        replies = type(together).lockstep([rows(together, k, k + 1).row() for k in range(3)])
        for one, other in pairwise(replies):
            for a, b in zip(tree.leaves(one), tree.leaves(other), strict=True):
                assert a.data_ptr() != b.data_ptr()
