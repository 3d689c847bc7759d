"""A grid of settings: every combination under one budget, here or side by side on workers, with one table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

import labkit as lk
from labkit.algorithms import AllReduce, LocalSGD
from labkit.errors import DataError, SettingError
from labkit.exchange import Mean
from tests.engines.experiments import difference, mlp

GRID = {"algorithm": [AllReduce(), LocalSGD(4)], "batch_size": [16, 32]}
NAMES = [
    f"{it}, batch_size={size}"
    for it in ("AllReduce(form='native', accumulate=1)", "LocalSGD(every=4)")
    for size in (16, 32)
]


@dataclass(frozen=True)
class Sometimes:
    """Fails on workers, where there is no such file."""

    path: str = ""

    def round(self, peer, batches):
        peer.step(peer.loss(next(batches)))
        if self.path:
            Path(self.path).touch(exist_ok=False)
        peer.params = yield Mean(peer.params)


def swept(grid=GRID, **settings):
    settings = {"peers": 2, "steps": 8} | settings
    return lk.sweep(grid, mlp, lk.data.load("digits"), **settings)


def test_every_combination_is_what_a_comparison_makes_of_it():
    done = swept(seeds=2).result(60)
    assert list(done.histories) == NAMES and "4 settings on digits, 2 peers, 8 steps each" in repr(done)
    same = {name: LocalSGD(4) for name in NAMES[3:]}
    one = lk.compare(same, mlp, lk.data.load("digits"), peers=2, steps=8, batch_size=32, seeds=2).result(60)
    for a, b in zip(done.repeats[NAMES[3]], one.repeats[NAMES[3]], strict=True):
        assert difference(a, b) == 0
    assert [line[0] for line in done.table().rows] == NAMES and done.plot().png()


def test_workers_train_side_by_side_to_the_same_result(lab):
    here, there = swept(seeds=2).result(60), swept(seeds=2, on=lab).result(60)
    for name in NAMES:
        for a, b in zip(here.repeats[name], there.repeats[name], strict=True):
            assert difference(a, b) < 1e-5 and a.bytes == b.bytes and b.settings["seed"] == a.settings["seed"]
    assert there.state == "finished" and there.table().rows == here.table().rows
    assert len(set(there._job.schedule.worker.tolist())) == 2  # both of them


def test_values_may_have_names_and_optimisers_say_what_they_are():
    rates = {"optimizer": [partial(torch.optim.SGD, lr=lr) for lr in (0.1, 0.2)], "peers": {"few": 2, "more": 3}}
    done = lk.sweep(rates, mlp, lk.data.load("digits"), steps=2).result(60)
    assert next(iter(done.histories)) == "optimizer=SGD(lr=0.1), peers=few" and "2 to 3 peers" in repr(done)
    assert done.histories["optimizer=SGD(lr=0.2), peers=more"].peers == 3


def test_virtual_clocks_of_workers_take_the_same_seconds_for_a_step(lab):
    on = lk.Simulator(network=lk.Link(latency=1e-3, bandwidth=1e8))
    done = swept({"batch_size": {"a": 16, "b": 16}}, lab=lab, on=on).result(60)
    one, other = done.histories.values()
    assert one.clock == "virtual" and one.seconds == other.seconds > 0


@pytest.mark.parametrize(
    ("grid", "settings", "error", "says"),
    [
        ({}, {}, SettingError, "nothing to sweep"),
        ([1], {}, SettingError, "nothing to sweep"),
        ({"seed": [1]}, {}, SettingError, "cannot have 'seed'"),
        ({"batchsize": [1]}, {}, SettingError, "cannot have 'batchsize': it may vary .*batch_size"),
        ({"batch_size": 16}, {}, SettingError, "no list of values for batch_size"),
        ({"batch_size": []}, {}, SettingError, "no list of values for batch_size"),
        ({"peers": [2]}, {"peers": 2}, SettingError, "given for all, too"),
        ({"loss": [lambda a, b: a.sum(), lambda a, b: b.sum()]}, {}, SettingError, "different names"),
        ({"batch_size": [16, 0]}, {}, SettingError, "'batch_size=0': batch_size is 0"),
        ({"batch_size": [16, 5000]}, {}, DataError, "'batch_size=5000': "),
        (GRID, {"rounds": 3}, SettingError, "leave rounds away"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_what_is_no_grid_is_refused_before_anything_runs(grid, settings, error, says):
    with pytest.raises(error, match=says) as caught:
        swept(grid, **settings)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_cluster_engine_is_refused(lab):
    with pytest.raises(SettingError, match="side by side"):
        swept(on=lk.Cluster(lab))


def test_one_that_fails_on_a_worker_is_named_tried_again_and_the_others_are_kept(lab, tmp_path):
    blocked = tmp_path / "there"
    blocked.touch()
    grid = {"algorithm": {"good": AllReduce(), "bad": Sometimes(str(blocked))}}
    done = swept(grid, on=lab, steps=1)
    with pytest.raises(FileExistsError) as caught:
        done.result(60)
    assert any("'bad'" in note for note in caught.value.__notes__) and done.state == "failed"
    kept = done.histories["good"]
    assert kept.rows and list(done.errors) == ["bad"]
    blocked.unlink()
    done.resume()
    assert done.result(60).state == "finished" and done.histories["good"] is kept and done.histories["bad"].rows


def test_a_sweep_on_workers_can_be_stopped_and_taken_up_again(lab):
    grid = {"batch_size": [16, 17, 18, 19]}
    done = swept(grid, on=lab, steps=400)
    limit = time.monotonic() + 30
    while not any(it.rows for it in done.histories.values()):
        assert time.monotonic() < limit
        time.sleep(0.01)
    done.stop()
    assert done.result(30) is done
    kept = [it for it in done.histories.values() if it.rows]
    done.resume()
    assert done.result(60).state == "finished"
    assert [it.rows[-1].steps for it in done.histories.values()] == [400] * 4
    assert all(it in done.histories.values() for it in kept)
