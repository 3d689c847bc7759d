"""All-reduce from scratch: each form sums, on its own and over a real process group, at the cost that is stated."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, strategies as st

from labkit.costs.link import Link
from labkit.errors import ExchangeError, SettingError
from labkit.exchange import Mean, walk
from labkit.exchange.collectives import FORMS, Move, cut, form
from tests.examples import few

EVERY_FORM = ["native", "naive", "ring", "tree"]


def vectors(ranks, numbers):
    return torch.arange(ranks * numbers, dtype=torch.float64).reshape(ranks, numbers).add(1).sqrt()


@pytest.mark.parametrize("name", FORMS)
@given(ranks=st.integers(1, 9), numbers=st.integers(0, 12))
@few
def test_every_rank_ends_with_the_sum_whatever_the_ranks_and_the_length(name, ranks, numbers):
    values = vectors(ranks, numbers)
    state = values
    for step in walk(name, values):
        state = step.state
    torch.testing.assert_close(state, values.sum(0).expand(ranks, -1))


@pytest.mark.parametrize("name", FORMS)
@given(ranks=st.integers(1, 9), numbers=st.integers(0, 12))
@few
def test_a_walk_sends_exactly_the_bytes_that_the_mean_states_for_each_pair_of_peers(name, ranks, numbers):
    sent = Counter()
    for step in walk(name, vectors(ranks, numbers)):
        for it in step.sent:
            sent[it.source, it.target] += it.nbytes
    message = Mean(torch.zeros(numbers, dtype=torch.float64), form=name)
    transfers = message.transfers(ranks)
    assert sent == {(it.source, it.target): it.nbytes for it in transfers}
    assert sum(it.nbytes for it in transfers) == pytest.approx(ranks * message.bytes(ranks))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("name", FORMS)
def test_a_walk_takes_as_many_steps_as_the_form_states(name, ranks):
    steps = {"naive": 2 * (ranks - 1), "ring": 2 * (ranks - 1), "tree": 2 * math.ceil(math.log2(ranks))}
    assert len(list(walk(name, vectors(ranks, 5)))) == steps[name] == form(name).steps(ranks)


def test_in_no_step_does_a_rank_send_or_receive_twice():
    for name in FORMS:
        for step in walk(name, vectors(7, 3)):
            assert max(Counter(it.source for it in step.sent).values()) == 1
            assert max(Counter(it.target for it in step.sent).values()) == 1


def test_seconds_are_those_of_the_latency_bandwidth_model():
    link, nbytes = Link(latency=1e-3, bandwidth=1e6), 4000
    seconds = {name: Mean(torch.zeros(1000), form=name).seconds(8, link) for name in EVERY_FORM}
    assert seconds["ring"] == pytest.approx(14 * (1e-3 + nbytes / 8 / 1e6))
    assert seconds["native"] == seconds["ring"]
    assert seconds["naive"] == pytest.approx(14 * (1e-3 + nbytes / 1e6))
    assert seconds["tree"] == pytest.approx(6 * (1e-3 + nbytes / 1e6))


def test_after_the_first_half_of_a_ring_each_rank_holds_one_whole_chunk():
    values = vectors(4, 8)
    state = list(walk("ring", values))[2].state
    for rank in range(4):
        whole = cut(values.sum(0), 4)[(rank + 1) % 4]
        torch.testing.assert_close(cut(state[rank], 4)[(rank + 1) % 4], whole)


def test_a_walk_leaves_its_values_alone():
    values = vectors(3, 4)
    before = values.clone()
    list(walk("ring", values))
    assert torch.equal(values, before)


def test_a_step_shows_its_moves_and_what_they_changed():
    first, *_ = walk("naive", [[1, 2], [10, 20], [100, 200]])
    assert str(first).splitlines() == [
        "step 1:   1 → 0   (16 bytes each)",
        "  rank 0   │    [11]    [22] │",
        "  rank 1   │     10      20  │",
        "  rank 2   │    100     200  │",
    ]


def test_a_step_of_many_ranks_and_numbers_is_cut_short():
    shown = str(next(walk("ring", torch.ones(40, 400)))).splitlines()
    assert len(shown) == 14 and all(len(line) < 200 for line in shown)


def test_a_program_of_ones_own_can_be_walked():
    def to_the_left(rank, size, x):
        x.copy_((yield Move(x, (rank - 1) % size, like=x, source=(rank + 1) % size)))

    (step,) = walk(to_the_left, [[1], [2], [3]])
    assert step.state.flatten().tolist() == [2, 3, 1]


def test_ranks_that_wait_for_each_other_are_named():
    def deaf(rank, size, x):
        yield Move(like=x, source=1 - rank)

    with pytest.raises(ExchangeError, match=r"Ranks 0, 1 wait for each other"):
        list(walk(deaf, [[1], [2]]))


def test_a_partner_that_expects_another_length_is_named():
    def short(rank, size, x):
        yield Move(send=x[:1], to=1) if rank == 0 else Move(like=x, source=0)

    with pytest.raises(ExchangeError, match=r"Rank 0 sends \[1\] to rank 1, which expects \[2\]"):
        list(walk(short, [[1, 1], [2, 2]]))


def test_a_move_with_half_an_end_is_refused():
    with pytest.raises(ExchangeError, match="send= and to="):
        Move(send=torch.zeros(1))


@pytest.mark.parametrize("wrong", ["star", "", "Ring"])
def test_an_unknown_form_is_refused_with_the_known_ones(wrong):
    for use in (lambda: Mean(torch.zeros(1), form=wrong), lambda: walk(wrong, [[1]])):
        with pytest.raises(SettingError, match="'native', 'naive', 'ring', 'tree'"):
            use()


def test_a_walk_of_nothing_is_refused():
    with pytest.raises(SettingError, match="one vector for each rank"):
        walk("ring", [])
