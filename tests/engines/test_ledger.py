"""The ledger of a history: bytes that one of the registered peers has sent, on average, by the messages' formulas."""

from __future__ import annotations

import pytest

import labkit as lk
from labkit.algorithms import (
    SCAFFOLD,
    AllReduce,
    Compressed,
    FedAvg,
    FedNova,
    Gossip,
    Independent,
    LocalSGD,
    Mutual,
    Robust,
    Secure,
)
from labkit.exchange import CoordinateMedian, Half, RandomK, TopK
from tests.engines.experiments import mlp, result

NUMBERS = 64 * 32 + 32 + 32 * 10 + 10  # of the model
LOGITS = 16 * 10  # of a batch
KEPT = round(0.1 * NUMBERS)

CLIENTS = [  # of a server, which hears from each of those who take part what it has to say: numbers of 4 bytes
    (FedAvg(every=2), NUMBERS),
    (FedAvg(every=2, participation=0.5), 3 / 6 * NUMBERS),  # three of six
    (FedAvg(every=2, participation=0.1), 1 / 6 * NUMBERS),  # one alone
    (SCAFFOLD(every=2), 2 * NUMBERS),
    (FedNova(every=2), NUMBERS + 1),
    (Compressed(FedAvg(every=2), TopK(0.1)), 2 * KEPT),  # values and places
    (Compressed(FedAvg(every=2), RandomK(0.1)), KEPT),
    (Compressed(FedAvg(every=2), Half()), NUMBERS / 2),
    (Robust(FedAvg(every=2), CoordinateMedian()), NUMBERS),
    (Secure(FedAvg(every=2)), 2 * (NUMBERS + 1)),  # the weight is masked as well
    (Secure(FedAvg(every=2, participation=0.5)), 3 / 6 * 2 * (NUMBERS + 1 + 1)),  # who takes part
]


@pytest.mark.parametrize("on", [lk.Lockstep(), lk.Simulator()], ids=["lockstep", "stacked"])
@pytest.mark.parametrize(
    ("algorithm", "each"),
    [
        (Independent(), 0),
        (AllReduce(), 2 * 5 / 6 * NUMBERS),
        (Gossip("ring"), 2 * NUMBERS),
        (Mutual(), 5 * LOGITS),
        *CLIENTS,
    ],
    ids=str,
)
def test_every_round_adds_what_its_messages_cost(on, algorithm, each):
    history = result(on, algorithm, peers=6, rounds=3)
    assert [row.bytes for row in history.rows] == pytest.approx([4 * each * k for k in (1, 2, 3)])
    assert history.ledger == "formula"


@pytest.mark.parametrize(("algorithm", "each"), [CLIENTS[i] for i in (1, 3, 5, 10)], ids=str)
def test_the_clients_of_workers_send_a_server_what_the_formula_says(lab, algorithm, each):
    """Whatever the workers, who stand for them, send each other: sums of the ring, here of blocks of three."""
    history = result(lab, algorithm, peers=6, rounds=3)
    assert [row.bytes for row in history.rows] == pytest.approx([4 * each * k for k in (1, 2, 3)])
    assert history.ledger == "formula"
    assert result(lab, LocalSGD(every=2), rounds=1).ledger == "measured"


LINK = lk.Link(latency=0.1, bandwidth=1e4)


@pytest.mark.parametrize("engine", [lk.Lockstep, lk.Simulator])
@pytest.mark.parametrize(
    ("algorithm", "up", "down"),
    [
        (FedAvg(every=2), 4 * NUMBERS, 4 * NUMBERS),
        (FedAvg(every=2, participation=0.1), 4 * NUMBERS, 4 * NUMBERS),
        (Compressed(FedAvg(every=2), TopK(0.1)), 8 * KEPT, 4 * NUMBERS),
        (Compressed(FedAvg(every=2), RandomK(0.1)), 4 * KEPT, 4 * KEPT),
        (Robust(FedAvg(every=2), CoordinateMedian()), 4 * NUMBERS, 4 * NUMBERS),
        (Secure(FedAvg(every=2)), 8 * (NUMBERS + 1), 8 * (NUMBERS + 1)),
    ],
    ids=str,
)
def test_a_round_of_clients_takes_the_way_up_and_the_way_down(engine, algorithm, up, down):
    on = engine(network=LINK, step_seconds=1e-3)
    each = 2 * 1e-3 + 2 * 0.1 + (up + down) / 1e4
    assert [row.seconds for row in result(on, algorithm, peers=6, rounds=2).rows] == pytest.approx([each, 2 * each])


def test_a_step_shows_what_goes_to_the_server():
    settings = {"peers": 4, "batch_size": 16, "rounds": 1}
    barrier = next(lk.step_through(mlp, lk.data.load("digits"), FedAvg(every=1, participation=0.5), **settings))
    assert [(way.source, way.target, way.nbytes) for way in barrier.transfers] == [
        (peer, -1, 4 * NUMBERS) for peer in barrier.peers
    ]
    assert barrier.bytes == 4 * NUMBERS and "server (9.64 kB)" in repr(barrier)
