"""How many peers are stacked at once is measured, once."""

from __future__ import annotations

import itertools

import pytest
import torch

from labkit.engines.stacked import block_size as blocks
from labkit.engines.stacked.block_size import block_key, block_size

fresh = itertools.count()


@pytest.fixture
def clock(monkeypatch):
    """A clock that only steps move, and steps of k peers that take `seconds(k)` on it."""
    now = [0.0]
    monkeypatch.setattr(blocks, "perf_counter", lambda: now[0])

    def prepare(seconds, tried):
        def steps(k):
            tried.append(k)
            return lambda: now.__setitem__(0, now[0] + seconds(k))

        return steps

    return prepare


def test_the_size_with_the_least_seconds_per_peer_is_taken_and_larger_ones_are_not_tried(clock):
    tried = []
    cost = {25: 0.002, 50: 0.0025, 100: 0.003, 200: 0.009}
    assert block_size(10_000, next(fresh), clock(cost.__getitem__, tried)) == 100
    assert tried == [25, 50, 100, 200]


def test_measuring_ends_when_its_time_is_spent(clock):
    tried = []
    assert block_size(10_000, next(fresh), clock(lambda k: 0.2, tried)) == 25
    assert tried == [25]


def test_a_first_step_that_waits_for_its_libraries_is_not_measured(clock):
    tried, seconds = [], itertools.chain([0.6], itertools.repeat(0.001))
    assert block_size(100, next(fresh), clock(lambda k: next(seconds), tried)) == 100
    assert tried == [25, 50, 100]


def test_a_model_is_measured_once(clock):
    key, tried = next(fresh), []
    sizes = {block_size(100, key, clock(lambda k: 0.001, tried)) for _ in range(3)}
    assert sizes == {100}
    assert tried == [25, 50, 100]


def test_more_peers_than_were_measured_are_measured_again(clock):
    key, tried = next(fresh), []
    assert block_size(60, key, clock(lambda k: 0.001, tried)) == 50
    assert block_size(120, key, clock(lambda k: 0.001, tried)) == 100


@pytest.mark.parametrize("peers", [1, 32])
def test_few_peers_are_one_block_without_a_measurement(clock, peers):
    tried = []
    assert block_size(peers, next(fresh), clock(lambda k: 1.0, tried)) == peers
    assert tried == []


def test_measuring_leaves_the_random_numbers_of_the_training_alone(clock):
    def prepare(k):
        return lambda: torch.rand(k)

    torch.manual_seed(0)
    block_size(50, next(fresh), prepare)
    measured = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(measured, torch.rand(3))


@pytest.mark.parametrize("changed", ["model", "batch", "optimizer", "threads"])
def test_what_changes_the_speed_changes_the_key(changed, monkeypatch):
    def key(model, batch, optimizer):
        return block_key(
            model, (torch.Size(batch), torch.float32), torch.device("cpu"), optimizer, torch.nn.functional.cross_entropy
        )

    given = dict(model=torch.nn.Linear(4, 2), batch=(16, 4), optimizer=torch.optim.SGD)
    same = key(**given | dict(model=torch.nn.Linear(4, 2)))
    assert same == key(**given)
    if changed == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
        other = key(**given)
    else:
        others = dict(model=torch.nn.Linear(4, 3), batch=(32, 4), optimizer=torch.optim.Adam)
        other = key(**given | {changed: others[changed]})
    assert other != same


@pytest.mark.parametrize(("peers", "size"), [(33, 33), (5000, 100)])
def test_the_clock_does_not_decide_who_draws_which_random_numbers(peers, size):
    """Dropout: a block's size decides which peer draws which mask, so it must not depend on the machine's mood."""
    assert block_size(peers, next(fresh), lambda k: lambda: torch.rand(k)) == size
