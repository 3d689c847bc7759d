"""epochs=: every example is seen exactly so often, and the mean is over those who still have batches."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import chain

import hypothesis
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import labkit as lk
from labkit.algorithms import AllReduce
from labkit.data.batches import Epochs
from labkit.tasks.split import Partition
from labkit.training.plan import plan
from labkit.training.run import Run
from labkit.training.settings import Settings
from tests.engines.experiments import MOMENTUM, mlp, parameters, result

EPOCHS, BATCH, SEED = 2, 16, 3
SHARDS = Partition.of(115, [range(70), range(70, 115)])  # 5 and 3 batches an epoch, the last ones of 6 and of 13
SETTINGS = {"batch_size": BATCH, "seed": SEED, "rounds": None, "epochs": EPOCHS, "optimizer": MOMENTUM}


def joined(model, dataset, shards):
    """The same training as torch's documentation has it, with uneven inputs under Join."""
    from torch.distributed.algorithms.join import Join
    from torch.nn.parallel import DistributedDataParallel

    rank = torch.distributed.get_rank()
    parallel = DistributedDataParallel(model)
    optimizer = MOMENTUM(model.parameters())
    with Join([parallel], divide_by_initial_world_size=False):
        for at in map(torch.from_numpy, Epochs(shards[rank], BATCH, SEED, rank, EPOCHS)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(parallel(dataset.x[at]), dataset.y[at]).backward()
            optimizer.step()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def started():
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return mlp()


@pytest.fixture(scope="module")
def plain(lab):
    """What both ranks of the plain program end with."""
    dataset = lk.data.load("digits")
    one, other = lab.launch(joined, started(), dataset, [range(70), range(70, 115)], ranks=2).result(timeout=60)
    assert torch.equal(one, other)
    return one


@pytest.mark.parametrize("where", ["ddp", "generator", "lockstep", "simulator"])
def test_uneven_shards_train_as_under_torchs_join(lab, plain, where):
    places = {"ddp": lk.Cluster(lab), "generator": lk.Cluster(lab, ddp=None), "lockstep": lk.Lockstep()}
    history = result(places.get(where, lk.Simulator()), AllReduce(), shards=SHARDS, **SETTINGS)
    assert len(history.rows) == 10
    for row in parameters(history):
        assert float((row - plain).abs().max()) < 1e-5
    alone = [row.losses[1] for row in history.rows]
    assert [loss == loss for loss in alone] == [True] * 6 + [False] * 4, "who has no batches has no loss"


def test_every_example_is_trained_on_exactly_so_often():
    seen: Counter[float] = Counter()

    def counting(outputs, targets):
        seen.update(targets.flatten().tolist())
        return (outputs.squeeze(-1) - targets).square().mean()

    numbered = lk.data.from_tensors(torch.rand(115, 3), torch.arange(115.0), test_share=0.0)
    settings = SETTINGS | {"optimizer": partial(torch.optim.SGD, lr=1e-6), "loss": counting, "peers": 2}
    for on in (lk.Lockstep(), lk.Simulator()):
        engine, experiment = plan(
            Settings(nn.Linear(3, 1), numbered, AllReduce(accumulate=2), on=on, shards=SHARDS, **settings)
        )
        seen.clear()  # it was tried
        Run(engine, experiment).result(timeout=60)
        assert set(seen.values()) == {EPOCHS} and len(seen) == 115


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("peers", [2, 3])
def test_engines_agree_on_epochs(lab, peers, accumulate):
    """Three peers on two workers are not stacked; rounds of three batches end with fewer."""
    parts = {2: [range(70), range(70, 115)], 3: [range(70), range(70, 115), range(115, 120)]}[peers]
    settings = SETTINGS | {"shards": Partition.of(120, parts), "peers": peers, "clip": 1.0}
    places = (lk.Lockstep(), lk.Simulator(), lk.Cluster(lab), lk.Cluster(lab, ddp=None))
    first, *others = [result(on, AllReduce(accumulate=accumulate), **settings) for on in places]
    assert len(first.rows) == -(-10 // accumulate)
    for other in others:
        assert float((parameters(first) - parameters(other)).abs().max()) < 1e-5
        if peers == 2:  # three peers on two workers send between these what their sums take
            assert [row.bytes for row in other.rows] == [row.bytes for row in first.rows]


def test_who_has_run_out_leaves_its_running_statistics_alone(lab):
    """DDP needs everybody in every backward pass; the last batch goes through again and must leave no trace."""

    def normalised():
        return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

    one, other = (result(on, AllReduce(), normalised, **SETTINGS, shards=SHARDS) for on in (lk.Lockstep(), lab))
    for mine, theirs in zip(one.models, other.models, strict=True):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), atol=1e-5, rtol=1e-5)


@given(size=st.integers(1, 60), batch=st.integers(1, 20), seed=st.integers(0, 9), start=st.integers(0, 30))
@hypothesis.settings(max_examples=60, deadline=None)
def test_batches_hold_every_example_so_often_in_the_same_order_from_any_start(size, batch, seed, start):
    shard = range(100, 100 + size)
    whole = [found.tolist() for found in Epochs(shard, batch, seed, 1, 3)]
    assert Counter(k for found in whole for k in found) == dict.fromkeys(shard, 3)
    assert [found.tolist() for found in Epochs(shard, batch, seed, 1, 3, start)] == whole[start:]
    epoch = len(whole) // 3
    assert all(sorted(chain(*whole[e * epoch : (e + 1) * epoch])) == list(shard) for e in range(3))
