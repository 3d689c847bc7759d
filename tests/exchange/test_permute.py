"""Permute: every peer receives exactly what its source sent, and nothing else travels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from labkit.costs.link import Link
from labkit.errors import ExchangeError, SettingError
from labkit.exchange import Permute, pairs, shift
from tests.examples import few

LINK = Link(latency=1e-3, bandwidth=1e6)


@pytest.mark.parametrize(
    "x", [torch.arange(5), torch.arange(5) > 2, torch.rand(5, 2, 3), {"a": torch.arange(5), "b": torch.rand(5, 0)}]
)
@given(source=st.none() | st.permutations(range(5)).map(tuple))
@few
def test_lockstep_and_stacked_hand_each_peer_its_sources_value_of_any_dtype(x, source):
    def row(i):
        return x[i] if isinstance(x, torch.Tensor) else {name: leaf[i] for name, leaf in x.items()}

    sources = source or (4, 0, 1, 2, 3)
    stacked = Permute(x, source).stacked()
    replies = Permute.lockstep([Permute(row(i), source) for i in range(5)])
    for i, j in enumerate(sources):
        torch.testing.assert_close(replies[i], row(j))
        got = stacked[i] if isinstance(stacked, torch.Tensor) else {name: leaf[i] for name, leaf in stacked.items()}
        torch.testing.assert_close(got, row(j))


def test_replies_are_separate_tensors_so_that_one_peer_cannot_change_another():
    sent = [torch.zeros(1), torch.ones(1)]
    replies = Permute.lockstep([Permute(value) for value in sent])
    replies[0].fill_(7)
    assert sent[1].item() == 1


def test_only_what_changes_hands_costs():
    message = Permute(torch.zeros(1000), (1, 0, 2, 3))
    assert message.bytes(4) == 2000
    assert message.transfers(4) == [(1, 0, 4000), (0, 1, 4000)]
    assert message.seconds(4, LINK) == pytest.approx(1e-3 + 4e-3)


@pytest.mark.parametrize(("source", "peers"), [((0, 1, 2), 3), (None, 1)])
def test_what_stays_where_it_is_costs_nothing(source, peers):
    message = Permute(torch.zeros(1000), source)
    assert message.bytes(peers) == message.seconds(peers, LINK) == 0 and message.transfers(peers) == []


def test_a_peer_waits_for_its_source_only():
    ready = torch.tensor([0.0, 5.0, 1.0, 2.0], dtype=torch.float64)
    arrivals = Permute(torch.zeros(1000), (1, 0, 2, 3)).arrivals(ready, LINK)
    assert arrivals.tolist() == pytest.approx([5.005, 5.0, 1.0, 2.0])


def test_shifts_and_pairs_are_permutations():
    assert shift(5, 2) == (3, 4, 0, 1, 2) and shift(5, -1) == (1, 2, 3, 4, 0)
    assert pairs(6) == (1, 0, 3, 2, 5, 4)


def test_pairs_of_an_odd_number_are_refused():
    with pytest.raises(SettingError, match="5 peers do not make pairs"):
        pairs(5)


@pytest.mark.parametrize(
    ("source", "words"), [((0, 0, 1), "0 twice"), ((1, 2, 3), r"not 0 … 2"), ((-1, 0), r"not 0 … 1")]
)
def test_what_is_no_permutation_is_refused(source, words):
    with pytest.raises(SettingError, match=words):
        Permute(torch.zeros(1), source)


def test_a_permutation_of_another_number_of_peers_is_refused():
    with pytest.raises(ExchangeError, match="permutes 2 peers, but 3 take part"):
        Permute(torch.zeros(3, 1), (1, 0)).stacked()
