"""Messages over a real process group: the same replies as in one process, and a ledger that equals the formulas."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import torch.distributed as dist

import labkit as lk
from labkit import tree
from labkit.cluster.local import local_cluster
from labkit.errors import ExchangeError, GangError, WorkerLost
from labkit.exchange import (
    AllGather,
    AllToAll,
    Copy,
    Gather,
    Mean,
    Mix,
    Move,
    Permute,
    ReduceScatter,
    Shift,
    Sum,
    topologies,
    walk,
)
from labkit.exchange.collectives import FORMS
from labkit.exchange.group import RankGroup
from tests.exchange.test_collectives import EVERY_FORM, vectors

pytestmark = pytest.mark.paired


@pytest.fixture(scope="module")
def trio():
    """Three workers, the smallest number at which the forms differ."""
    with local_cluster(3, threads=1, memory=4 << 30) as cluster, lk.connect(cluster) as lab:
        yield lab


# -- all-reduce in its forms


def test_a_form_over_a_real_process_group_sums_and_sends_what_its_walk_sends(trio):
    cases = [(name, numbers) for name in FORMS for numbers in (1, 2, 3, 1000)]

    def reduce_and_count():
        """One rank: its sums, and the bytes in its ledger."""
        results = []
        for name, numbers in cases:
            group = RankGroup((1, 1, 1))
            results.append((group.all_reduce(vectors(3, numbers)[group.rank].clone(), name), group.sent))
        return results

    for rank, results in enumerate(trio.launch(reduce_and_count).result()):
        for (name, numbers), (total, sent) in zip(cases, results, strict=True):
            values = vectors(3, numbers)
            torch.testing.assert_close(total, values.sum(0))
            assert sent == sum(it.nbytes for step in walk(name, values) for it in step.sent if it.source == rank)


def test_a_program_of_ones_own_runs_over_a_real_process_group(trio):
    def twice_around():
        group = RankGroup((1, 1, 1))

        def around(rank, size, x):
            passing = x.clone()
            for _ in range(size - 1):
                passing = yield Move(passing, (rank + 1) % size, like=x, source=(rank - 1) % size)
                x += passing

        return group.all_reduce(torch.tensor([1.0 + group.rank]), around), group.sent

    assert [(total.item(), sent) for total, sent in trio.launch(twice_around).result()] == [(6.0, 8)] * 3


# -- messages


def examples(peers):
    """Trees of several dtypes, one row for each peer."""
    generator = torch.Generator().manual_seed(peers)
    return {
        "w": torch.randn(peers, 2, 3, generator=generator),
        "scalar": torch.randn(peers, generator=generator, dtype=torch.float64),
        "index": torch.randint(100, (peers, 4), generator=generator),
        "mask": torch.rand(peers, 3, generator=generator) < 0.5,
    }


def floats(peers):
    return {name: leaf for name, leaf in examples(peers).items() if name in ("w", "scalar")}


def parts(peers):
    """Rows that have a part for each peer."""
    generator = torch.Generator().manual_seed(peers)
    return {
        "w": torch.randn(peers, peers, 2, 3, generator=generator),
        "b": torch.randn(peers, peers, generator=generator),
    }


MESSAGES = {
    **{f"Mean-{name}": lambda n, name=name: Mean(floats(n), form=name) for name in EVERY_FORM},
    **{
        f"Mean-weighted-{name}": lambda n, name=name: Mean(floats(n), torch.arange(1.0, n + 1), form=name)
        for name in EVERY_FORM
    },
    "Mean-of-integers": lambda n: Mean(examples(n)["index"]),
    "Gather": lambda n: Gather(examples(n)),
    "Permute": lambda n: Permute(examples(n)),
    "Permute-back": lambda n: Permute(examples(n), tuple(reversed(range(n)))),
    "Permute-nothing": lambda n: Permute(examples(n), tuple(range(n))),
    "Mix-integers": lambda n: Mix(examples(n)["index"], "ring"),
    **{f"Mix-{name}": lambda n, name=name: Mix(floats(n), name) for name in topologies.NAMES if name[:6] != "random"},
    "Mix-random": lambda n: Mix(floats(n), topologies.random_regular(n, degree=2)),
    "Mix-own": lambda n: Mix(floats(n), 0.7 * torch.eye(n).numpy() + 0.3 * torch.eye(n).roll(1, 0).numpy()),
    "Copy": lambda n: Copy(examples(n)),
    "Sum": lambda n: Sum(floats(n)),
    "AllGather": lambda n: AllGather(examples(n)),
    "ReduceScatter": lambda n: ReduceScatter(parts(n)),
    "AllToAll": lambda n: AllToAll(parts(n)),
    "Shift": lambda n: Shift(floats(n)),
    "Shift-line": lambda n: Shift(floats(n), ring=False),
    "Shift-line-back": lambda n: Shift(floats(n), -1, ring=False),
    "Shift-too-far": lambda n: Shift(floats(n), 7, ring=False),
}


def exchange(kind, blocks):
    """One rank: the replies to its block of the message's rows, and the bytes in its ledger."""
    group = RankGroup(blocks)
    message = MESSAGES[kind](sum(blocks))
    first, last = group.bounds(group.rank)
    mine = message._each(lambda leaf: leaf[first:last])
    return mine.collective(group), group.sent


def exchange_all(blocks):
    return {kind: exchange(kind, blocks) for kind in MESSAGES}


@pytest.fixture(scope="module", params=[(1, 1, 1), (3, 2, 1), (2, 0, 3), (0, 0, 4)], ids=str)
def exchanged(trio, request):
    """Blocks of peers, and what each rank got and sent for every kind of message."""
    return request.param, trio.launch(exchange_all, request.param).result()


@pytest.mark.parametrize("kind", MESSAGES)
def test_replies_over_a_process_group_are_those_of_stacked_peers(exchanged, kind):
    blocks, ranks = exchanged
    replies = [rank[kind][0] for rank in ranks]
    expected = MESSAGES[kind](sum(blocks)).stacked()
    for_all = len(tree.leaves(expected)[0]) == 1
    together = replies if for_all else [tree.map(lambda *rows: torch.cat(rows), *replies)]
    for reply in together:
        torch.testing.assert_close(reply, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("exchanged", [(1, 1, 1)], indirect=True, ids=str)
@pytest.mark.parametrize("kind", MESSAGES)
def test_the_ledger_is_the_formula(exchanged, kind):
    message = MESSAGES[kind](3).row()
    sent = [rank[kind][1] for rank in exchanged[1]]
    assert sum(sent) == pytest.approx(3 * message.bytes(3))
    if kind not in ("Mean-native", "Mean-weighted-native", "Mean-of-integers", "Sum"):  # whose chunks only torch knows
        by_source = [sum(it.nbytes for it in message.transfers(3) if it.source == rank) for rank in range(3)]
        assert sent == pytest.approx(by_source)


def test_ranks_fetch_only_what_they_lack_and_each_row_once(trio):
    def fetch():
        group = RankGroup((2, 2, 2))
        first, last = group.bounds(group.rank)
        rows = torch.arange(6.0)[first:last].unsqueeze(-1)
        return group.fetch(rows, [[5, 0, 5, 1], [], [4, 5]]).flatten().tolist(), group.sent

    assert trio.launch(fetch).result() == [([5, 0, 5, 1], 0), ([], 0), ([4, 5], 4)]


def test_blocks_may_change_from_round_to_round(trio):
    def rounds():
        group = RankGroup((1, 1, 1))
        replies = []
        for blocks in ((1, 1, 1), (2, 0, 1), (0, 1, 0)):
            group.blocks = blocks
            first, last = group.bounds(group.rank)
            replies.append(Gather(torch.arange(sum(blocks))[first:last]).collective(group).tolist())
        return replies

    assert trio.launch(rounds).result() == [[[[0, 1, 2]], [[0, 1, 2]], [[0]]]] * 3


# -- what goes wrong


@pytest.mark.parametrize(
    "message",
    [Mean(torch.ones(1, 2)), Gather(torch.ones(1)), Mix(torch.ones(1), "ring"), Permute(torch.ones(1))],
    ids=lambda m: type(m).__name__,
)
def test_an_exchange_after_the_process_group_is_gone_says_so_in_one_sentence(lab, message):
    def too_late():
        dist.destroy_process_group()
        message.collective(RankGroup((1, 1)))

    with pytest.raises(
        GangError, match=r"process group is gone, so nothing can be exchanged: .*launch again"
    ) as caught:
        lab.launch(too_late).result(timeout=60)
    assert isinstance(caught.value.__cause__, ExchangeError)


def test_an_exchange_without_a_process_group_says_so_in_one_sentence():
    with pytest.raises(ExchangeError, match="process group is gone"):
        Mean(torch.ones(1, 2)).collective(RankGroup((1,)))


@pytest.mark.parametrize("kind", ["Mean-native", "Mix-ring"])
def test_a_rank_that_dies_in_an_exchange_is_named_and_the_others_do_not_hang(trio, kind):
    def deadly():
        for _ in range(3):
            exchange(kind, (1, 1, 1))
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            exchange(kind, (1, 1, 1))

    with pytest.raises(WorkerLost, match="rank 1 with worker"):
        trio.launch(deadly).result(timeout=60)


@pytest.mark.parametrize("kind", ["Mean-native", "Permute"])
def test_a_rank_that_leaves_while_others_exchange_ends_them_in_one_sentence(trio, kind):
    def leaves_early():
        if dist.get_rank() == 2:
            return
        while True:
            exchange(kind, (1, 1, 1))

    with pytest.raises(GangError, match=r"still in a collective when rank 2 had already returned|lost its connection"):
        trio.launch(leaves_early).result(timeout=60)
