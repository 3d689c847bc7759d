"""Puzzles on graphs, gossip and trust: what solves them passes, and what does not is told why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from labkit import check
from labkit.algorithms import AllReduce, Robust
from labkit.algorithms.base import Batch, Peer, Round
from labkit.cluster.lab import Lab
from labkit.errors import CheckFailed
from labkit.exchange import CoordinateMedian, Krum, Mix, TrimmedMean, topologies

RING = [(i, (i + 1) % 8) for i in range(8)]
STAR = [(0, k) for k in range(1, 8)]
BAD = [(RING, "shortcuts"), (RING[:3], "cannot reach"), (STAR, "many neighbours"), ([(0, 9)], "0 to 7")]


@pytest.mark.parametrize(("edges", "said"), BAD)
def test_a_graph_that_does_not_do_is_told_why(edges: Any, said: str) -> None:
    with pytest.raises(CheckFailed, match=said):
        check.graph(edges)


def test_a_graph_is_told_of_in_words() -> None:
    with pytest.raises(CheckFailed, match="this graph of 1 edge gave"):
        check.graph(RING[:1])


def test_a_ring_with_shortcuts_does() -> None:
    assert "3 of 3 points" in repr(check.graph([*RING, (0, 4), (1, 5), (2, 6), (3, 7)]))


@dataclass(frozen=True)
class Mine:
    """Gossip of one's own; not so if it does not `keep` what comes back."""

    keep: bool = True

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        peer.step(peer.loss(next(batches)))
        mixed = yield Mix(peer.params, topologies.ring(peer.present))
        if self.keep:
            peer.params = mixed


class Deaf:
    """Gossip of one's own that forgot to yield."""

    def round(self, peer: Peer, batches: Iterator[Batch]) -> None:
        peer.step(peer.loss(next(batches)))


ROUNDS: list[tuple[Any, Any, str]] = [
    (Mine(keep=False), None, "keep what comes back"),
    (Mine(), topologies.complete(4).weights, "the W of your graph"),
    (Deaf(), None, "let it yield its messages"),
]


def test_a_gossip_round_of_ones_own_is_compared_with_gossip() -> None:
    assert "in this process and stacked" in repr(check.gossip(Mine()))


@pytest.mark.parametrize(("algorithm", "weights", "said"), ROUNDS)
def test_a_gossip_round_that_is_none_is_told_why(algorithm: Any, weights: Any, said: str) -> None:
    with pytest.raises(CheckFailed, match=said):
        check.gossip(algorithm, weights=weights)


@pytest.mark.paired
def test_it_also_runs_on_real_workers(lab: Lab) -> None:
    assert "on real workers" in repr(check.gossip(Mine(), lab))


@pytest.mark.parametrize("rule", [TrimmedMean(2), CoordinateMedian(), Krum(2)])
def test_a_defence_bears_two_liars_of_any_kind(rule: Any) -> None:
    assert "3 of 3 points" in repr(check.defence(lambda algorithm: Robust(algorithm, rule)))


DEFENCES: list[tuple[Any, str]] = [
    (lambda it: it, "whoever shouts"),
    (lambda it: Robust(it, TrimmedMean(1)), "two of seven can move this rule"),
    (lambda it: AllReduce(), "the two liars take part"),
    (lambda it: Robust(it, TrimmedMean(4)), "is good for 9 peers or more"),
    (lambda it: TrimmedMean(2), "is not an algorithm"),
]


@pytest.mark.parametrize(("defend", "said"), DEFENCES)
def test_a_defence_that_is_none_is_told_why(defend: Any, said: str) -> None:
    with pytest.raises(CheckFailed, match=said):
        check.defence(defend)
