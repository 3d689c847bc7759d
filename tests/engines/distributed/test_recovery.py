"""Training on real workers goes on when workers die or hang: from the last checkpoint, to the very same result."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import labkit as lk
from labkit.algorithms import SCAFFOLD, AllReduce, DiLoCo, FedAvg, LocalSGD
from labkit.engines.distributed.recovery import Recovery
from labkit.errors import ExchangeError, GangError, SettingError, WorkerLost
from tests.data.items import Flow, Pictures
from tests.engines.experiments import ADAM, MOMENTUM, difference, mlp
from tests.engines.mortals import ROUNDS, heard, kill, mortal, reach, same, start, whole

pytestmark = pytest.mark.paired


@pytest.fixture(scope="module")
def cluster():
    with mortal() as lab:
        yield lab


@pytest.fixture
def lab(cluster):
    cluster.cluster.scale(2)
    whole(cluster)
    return cluster


def texts(history):
    return [event.text for event in history.events]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("shared", [False, True], ids=["notebook", "folder"])
def test_a_killed_worker_changes_nothing_in_the_result(lab, tmp_path, rank, shared):
    on = heard(lab, checkpoint_every=20, checkpoint_to=tmp_path if shared else None)
    undisturbed = start(on, AllReduce()).result(60)
    run = start(on, AllReduce())
    reach(run, 60)
    kill(lab, rank)
    history = run.result(60)
    assert same(history, undisturbed)
    lost, resumed = history.events
    assert f"(rank {rank}) died" in lost.text and lost.round >= 60
    assert resumed.text.endswith("with 2 workers") and resumed.seconds >= lost.seconds
    assert int(resumed.text.split()[4]) % 20 == 1 and int(resumed.text.split()[4]) > 20
    assert [row.seconds for row in history.rows] == sorted(row.seconds for row in history.rows)


def stateful():
    """Random numbers and running statistics, which a checkpoint has to hold as well."""
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (LocalSGD(3), {"model": stateful, "optimizer": ADAM, "schedule": partial(
            torch.optim.lr_scheduler.MultiStepLR, milestones=[50, 200, 400], gamma=0.5)}),
        (DiLoCo(every=3), {}),
        (SCAFFOLD(every=3, participation=0.5), {"peers": 6}),
        (AllReduce(), {"model": stateful, "clip": 1.0}),
        (AllReduce(accumulate=2), {"precision": "fp16"}),
    ],
    ids=["LocalSGD", "DiLoCo", "SCAFFOLD", "AllReduce", "fp16"],
)  # fmt: skip
def test_all_that_an_algorithm_remembers_is_in_the_checkpoint(lab, algorithm, settings):
    on = heard(lab, checkpoint_every=10)
    undisturbed = start(on, algorithm, **settings).result(60)
    run = start(on, algorithm, **settings)
    reach(run, 70)
    kill(lab, 1)
    assert same(run.result(60), undisturbed)
    assert len(run.history.events) == 2 and "from round 1 " not in run.history.events[1].text


@pytest.mark.parametrize("items", [Pictures(), Flow()], ids=["map-style", "iterable"])
def test_batches_go_on_where_the_lost_worker_was(lab, items):
    """Shuffling and random transforms too, although the items are loaded by a process that has died."""
    on = heard(lab, checkpoint_every=10)
    settings = {"peers": 2, "rounds": 100, "batch_size": 16, "seed": 3, "optimizer": MOMENTUM, "on": on}
    dataset = lk.data.from_torch(items)
    undisturbed = lk.train(mlp, dataset, AllReduce(), **settings).result(60)
    run = lk.train(mlp, dataset, AllReduce(), **settings)
    reach(run, 25)
    kill(lab, 1)
    assert same(run.result(60), undisturbed)
    assert len(run.history.events) == 2 and "from round 1 " not in run.history.events[1].text


@pytest.mark.parametrize("later", [0, 40], ids=["after the last checkpoint", "before it"])
def test_a_learning_rate_that_was_changed_on_the_way_outlives_a_worker(lab, later):
    run = start(heard(lab, checkpoint_every=10), AllReduce(), rounds=1000)
    reach(run, 20)
    run.learning_rate = 0.003
    deadline = time.monotonic() + 20
    while run.history.rows[-1].learning_rate != 0.003:
        assert time.monotonic() < deadline and not run.done
        time.sleep(0.002)
    reach(run, len(run.history.rows) + later)
    kill(lab, 1)
    history = run.result(60)
    changed, lost, *again, resumed = history.events
    assert "0.003" in changed.text and "died" in lost.text and "went on from round" in resumed.text
    assert [event.text for event in again] in ([], [changed.text])  # again, where no checkpoint knew of it
    assert [row.learning_rate for row in history.rows if row.round > changed.round] == [0.003] * (1000 - changed.round)


@pytest.mark.parametrize(
    ("algorithm", "peers"),
    [(AllReduce(), 2), (DiLoCo(every=2, outer_lr=0.3, momentum=0.5), 5), (FedAvg(every=2), 4)],
    ids=repr,
)
def test_survivors_take_over_the_peers_of_a_lost_worker_at_once(lab, algorithm, peers):
    # steps so small that rounding errors do not grow
    settings = {"peers": peers, "rounds": 500, "optimizer": partial(torch.optim.SGD, lr=0.001, momentum=0.9)}
    undisturbed = start(lab, algorithm, **settings).result(60)
    run = start(heard(lab, checkpoint_every=10, elastic=True), algorithm, **settings)
    reach(run, 40)
    lab.cluster.scale(1)  # a nanny would have a killed worker back before anybody looks
    history = run.result(60)
    assert texts(history)[-1].endswith("with 1 worker")
    assert difference(history, undisturbed) < 1e-5
    assert [row.round for row in history.rows] == list(range(1, 501))


def test_without_a_checkpoint_a_run_begins_again(lab):
    on = heard(lab, checkpoint_every=10 * ROUNDS)
    undisturbed = start(on, AllReduce()).result(60)
    run = start(on, AllReduce())
    reach(run, 30)
    kill(lab, 1)
    assert same(run.result(60), undisturbed)
    assert "went on from round 1 with 2 workers" in texts(run.history)


def test_a_worker_that_dies_while_the_ranks_start_is_waited_for(lab):
    undisturbed = start(lab, AllReduce(), rounds=20).result(60)
    run = start(lab, AllReduce(), rounds=20)
    kill(lab, 0)
    assert [row.losses for row in run.result(60).rows] == [row.losses for row in undisturbed.rows]


def test_all_workers_may_die_at_once(lab):
    on = heard(lab, checkpoint_every=20, elastic=True)
    undisturbed = start(on, AllReduce()).result(60)
    run = start(on, AllReduce())
    reach(run, 60)
    kill(lab, 0, 1)
    assert torch.allclose(run.result(60).models[0][0].weight, undisturbed.models[0][0].weight, atol=1e-5)


class Dying(torch.optim.SGD):
    """Kills its worker while rank 1 makes its part of the third checkpoint, once."""

    def __init__(self, params, mark):
        super().__init__(params, lr=0.05, momentum=0.9)
        self._mark, self._saved = Path(mark), 0

    def state_dict(self):
        self._saved += 1
        if self._saved == 3 and dist.is_initialized() and dist.get_rank() == 1 and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().state_dict()


@pytest.mark.parametrize("shared", [False, True], ids=["notebook", "folder"])
def test_a_worker_that_dies_in_the_middle_of_a_checkpoint_leaves_the_one_before(lab, tmp_path, shared):
    on = lk.Cluster(lab, checkpoint_every=40, checkpoint_to=tmp_path / "saved" if shared else None)
    run = start(on, LocalSGD(2), optimizer=partial(Dying, mark=tmp_path / "died"))
    history = run.result(60)
    assert (tmp_path / "died").exists()
    assert texts(history)[1].startswith("went on from round")
    assert same(history, start(on, LocalSGD(2), optimizer=partial(Dying, mark=tmp_path / "died")).result(60))


def crash(outputs, targets):
    """A loss whose second rank crashes, at every attempt."""
    if dist.is_initialized() and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.functional.cross_entropy(outputs, targets)


def test_a_worker_that_is_lost_again_and_again_ends_the_run_in_one_sentence(lab):
    run = start(lab, LocalSGD(2), loss=crash)
    with pytest.raises(WorkerLost, match=r"lost 4 times without a checkpoint between.*rank 1.*more memory"):
        run.result(60)
    assert len(run.history.events) == 4


def test_a_run_goes_on_from_its_folder_when_its_kernel_has_died(lab, tmp_path):
    on = lk.Cluster(lab, checkpoint_every=10, checkpoint_to=tmp_path)
    undisturbed = start(lab, AllReduce()).result(60)
    start(on, AllReduce(), rounds=45).result(60)
    again = lk.Cluster(lab, checkpoint_every=10, checkpoint_to=tmp_path, resume=True)
    run = start(again, AllReduce())
    history = run.result(60)
    assert [row.round for row in history.rows] == list(range(1, ROUNDS + 1))  # those of the earlier run, too
    assert difference(history, undisturbed) == 0 and history.bytes == undisturbed.bytes
    assert run.state == "finished" and not history.stopped and "stopped" not in repr(history)
    assert [row.seconds for row in history.rows] == sorted(row.seconds for row in history.rows)
    assert history.events[-1].kind == "resumed" and history.events[-1].data["first"] == 41
    with pytest.raises(SettingError, match=r"seed 3, on digits.*and this run is.*seed 4.*resume=True away"):
        start(again, AllReduce(), seed=4).result(60)


def stuck(outputs, targets):
    """A loss that never ends on rank 1, in code that can be interrupted."""
    while dist.is_initialized() and dist.get_rank() == 1:
        pass
    return nn.functional.cross_entropy(outputs, targets)


@pytest.mark.slow
def test_an_endless_loop_ends_in_one_sentence_within_the_timeout(lab):
    start(lab, LocalSGD(2)).result(
        60
    )  # the workers may have come back only now, and the time is for them to begin, too
    begun = time.monotonic()
    with pytest.raises(
        (GangError, ExchangeError), match=r"rank 0 waited 2 s in a collective that not all ranks joined"
    ):
        start(lk.Cluster(lab, timeout=2), LocalSGD(2), loss=stuck).result(60)
    assert time.monotonic() - begun < 15


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(lab):
    on = heard(lab, checkpoint_every=20, timeout=4)
    undisturbed = start(on, AllReduce()).result(60)
    run = start(on, AllReduce())
    reach(run, 60)
    kill(lab, 1, by=signal.SIGSTOP)
    begun = time.monotonic()
    assert same(run.result(60), undisturbed)
    assert time.monotonic() - begun < 40
    assert "(rank 1) hung" in texts(run.history)[0]


def test_a_rank_that_hangs_at_the_same_place_again_ends_the_run_with_its_stack():
    recovery = object.__new__(Recovery)
    recovery._hung = set()
    error = WorkerLost("rank 1 hung in forward (mine.py, line 3).")
    error.add_note("Rank 1 was here")
    recovery._require_progress(error, {(1, "forward (mine.py, line 3)")})
    recovery._require_progress(error, {(1, "backward (mine.py, line 9)"), (0, "")})
    recovery._require_progress(error, {(0, "")})  # of which nobody knows where it was
    with pytest.raises(WorkerLost, match="for the second time, rank 1 hung in forward") as again:
        recovery._require_progress(error, {(1, "forward (mine.py, line 3)")})
    assert again.value.__notes__ == ["Rank 1 was here"]


def test_a_file_is_no_place_for_checkpoints(lab, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SettingError, match="file is a file; give a folder"):
            lk.Cluster(lab, checkpoint_to=path)


def test_settings_that_cannot_be_are_refused(lab):
    for settings in ({"checkpoint_every": 0}, {"resume": True}, {"device": "tpu"}):
        with pytest.raises(SettingError, match="give"):
            lk.Cluster(lab, **settings)
    with pytest.raises(SettingError, match="several peers on one worker"):
        lk.Cluster(lab, elastic=True, ddp=lk.DDP(hook="fp16"))
