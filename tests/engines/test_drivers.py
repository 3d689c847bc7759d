"""Blocks of peers are driven side by side, and nobody can tell from the result."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import labkit as lk
from labkit.algorithms import FedAvg, LocalSGD, Mutual
from labkit.engines.drivers import LEAST, drivers
from labkit.errors import DivergenceError
from tests.engines.experiments import difference, mlp, result

PEERS = 2 * LEAST


@pytest.fixture
def cores():
    """Two cores, whatever the machine has; what torch used before comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Watched(LocalSGD):
    """LocalSGD that remembers in which threads its blocks ran, and after how many local steps."""

    seen: tuple[list, ...] = ([],)

    def round(self, peer, batches):
        self.seen[0].append((peer.number, threading.current_thread().name, len(peer.ids)))
        yield from super().round(peer, batches)


class Own(nn.Module):
    """A model with a forward pass of its own, for which no layer's rule is enough."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)) + 0.5)


def dropout():
    return nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))


def threads(on, rounds=3, **settings):
    """The threads in which the blocks of each round ran."""
    seen = []
    result(on, Watched(every=1, seen=(seen,)), peers=PEERS, rounds=rounds, batch_size=4, **settings)
    return [{name for number, name, _ in seen if number == k} for k in range(1, rounds + 1)]


def test_each_driver_has_a_block_of_its_own(cores):
    seen = []
    result(lk.Simulator(), Watched(every=1, seen=(seen,)), peers=PEERS, rounds=2, batch_size=4)
    assert [size for number, _, size in seen if number == 2] == [LEAST, LEAST]


def test_blocks_run_side_by_side_once_a_round_has_drawn_no_random_numbers(cores):
    first, *others = threads(lk.Simulator())
    assert first == {"labkit-run"}
    assert set.union(*others) <= {"labkit-driver_0", "labkit-driver_1"}


def test_blocks_that_draw_random_numbers_take_turns(cores):
    assert threads(lk.Simulator(), model=dropout) == [{"labkit-run"}] * 3


def test_one_core_or_few_peers_need_no_drivers(cores):
    with drivers(2 * LEAST - 1) as few:
        assert few is None
    torch.set_num_threads(1)
    with drivers(1000) as one:
        assert one is None


@pytest.mark.parametrize("model", [mlp, Own, dropout], ids=["layers", "own forward pass", "dropout"])
@pytest.mark.parametrize("algorithm", [FedAvg(every=3), FedAvg(every=2, participation=0.5), LocalSGD(every=3)], ids=str)
def test_the_result_is_that_of_one_core(cores, model, algorithm):
    settings = dict(model=model, peers=4 * LEAST, rounds=4, batch_size=8)
    two, again = (result(lk.Simulator(block=LEAST), algorithm, **settings) for _ in range(2))
    torch.set_num_threads(1)
    assert difference(result(lk.Simulator(block=LEAST), algorithm, **settings), two) < 1e-6
    assert difference(two, again) == 0


def test_peers_who_talk_about_single_examples_may_do_it_side_by_side(cores):
    settings = dict(model=[mlp] * PEERS, peers=PEERS, rounds=2, batch_size=4)
    two = result(lk.Simulator(), Mutual(), **settings)
    torch.set_num_threads(1)
    assert difference(result(lk.Simulator(), Mutual(), **settings), two) < 1e-6


def test_what_goes_wrong_in_a_driver_is_raised_by_the_result(cores):
    @dataclass(frozen=True)
    class Wrong(LocalSGD):
        def round(self, peer, batches):
            if peer.number == 2 and 0 not in peer.ids:
                raise ZeroDivisionError("a mistake in the round")
            yield from super().round(peer, batches)

    with pytest.raises(ZeroDivisionError, match="a mistake in the round"):
        result(lk.Simulator(), Wrong(every=1), peers=PEERS, batch_size=4)
    with pytest.raises(DivergenceError):
        result(
            lk.Simulator(),
            LocalSGD(every=5),
            peers=PEERS,
            batch_size=4,
            optimizer=lambda params: torch.optim.SGD(params, lr=1e20),
        )


def test_a_run_that_is_stopped_leaves_no_driver_and_torchs_threads_as_they_were(cores):
    run = lk.train(mlp, lk.data.load("digits"), LocalSGD(every=1), peers=PEERS, rounds=100_000, batch_size=4)
    while len(run.history.rows) < 3:
        assert not run.done
    run.stop()
    run.result(timeout=30)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("labkit-driver")]
    assert torch.get_num_threads() == 2
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [2]


def test_threads_that_start_during_a_run_use_all_cores(cores):
    with drivers(PEERS) as two:
        assert two.count == 2
        assert set(two.every(lambda _: torch.get_num_threads(), range(4))) == {1}
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert found == [2]
