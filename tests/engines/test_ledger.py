"""The ledger of a history: bytes that one of the registered peers has sent, on average, by the messages' formulas."""

from __future__ import annotations

import pytest

import labkit as lk
from labkit.algorithms import AllReduce, FedAvg, Gossip, Independent, Mutual
from tests.engines.experiments import result

NUMBERS = 64 * 32 + 32 + 32 * 10 + 10  # of the model
LOGITS = 16 * 10  # of a batch


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
@pytest.mark.parametrize(
    ("algorithm", "each"),
    [
        (Independent(), 0),
        (AllReduce(), 2 * 5 / 6 * NUMBERS),
        (Gossip("ring"), 2 * NUMBERS),
        (Mutual(), 5 * LOGITS),
        (FedAvg(every=2), 2 * 5 / 6 * (NUMBERS + 1)),
        (FedAvg(every=2, participation=0.5), 3 / 6 * 2 * 2 / 3 * (NUMBERS + 1)),  # those three send, the others do not
    ],
    ids=str,
)
def test_every_round_adds_what_its_messages_cost(on, algorithm, each):
    history = result(on, algorithm, peers=6, rounds=3)
    assert [row.bytes for row in history.rows] == pytest.approx([4 * each * k for k in (1, 2, 3)])
    assert history.ledger == "formula"
