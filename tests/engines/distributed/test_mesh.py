"""Workers in rows: the same result as in one process, by groups of their own, measured bytes, recovery after a kill."""

from __future__ import annotations

import os
import signal
import time

import pytest

import labkit as lk
from labkit.algorithms import Mesh
from labkit.cluster.local import local_cluster
from labkit.errors import SettingError
from tests.algorithms.test_large import characters, distance, gpt, trained
from tests.algorithms.test_mesh import MESHES, both

pytestmark = pytest.mark.paired


@pytest.fixture(scope="module")
def four():
    with local_cluster(4, threads=1, memory=2 << 30) as cluster, lk.connect(cluster) as lab:
        yield lab


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("data × tensor", "adamw"),
        ("data × zero", "momentum"),
        ("data × sequence", "sgd"),
        ("data × expert", "adamw"),
        ("data × pipeline", "momentum"),
        ("pipeline × tensor", "adamw"),
        ("zero × tensor", "adamw"),
        ("zero × pipeline", "adamw"),
    ],
)
def test_a_mesh_of_workers_is_one_process(four, name, optimizer):
    whole, real = both(name, optimizer, four)
    assert distance(whole, real) < 1e-5
    assert real.final.accuracy == pytest.approx(whole.final.accuracy, abs=1e-6)
    simulated = trained(MESHES[name][1](), characters(), MESHES[name][0], optimizer, loss=lk.models.next_token)
    assert real.bytes == pytest.approx(simulated.bytes) and real.bytes > 0
    assert real.timeline is not None


def test_workers_may_hold_several_peers_of_a_mesh(lab):
    """Rows along one axis lie within a worker, those along the other are shared by two."""
    for mesh in (Mesh(data=2, tensor=2), Mesh(data=4, tensor=1), Mesh(tensor=4), Mesh(zero=2, tensor=2)):
        one, real = (trained(gpt(), characters(), mesh, loss=lk.models.next_token, on=on) for on in (None, lab))
        assert distance(one, real) < 1e-5


def test_stages_of_a_mesh_want_a_worker_each(lab):
    with pytest.raises(SettingError, match=r"wants a worker for each, .* 2: take peers=2 and a mesh of so many"):
        trained(gpt(), characters(), Mesh(data=2, pipeline=2), loss=lk.models.next_token, on=lab)


@pytest.mark.parametrize("mesh", [Mesh(data=2, tensor=2), Mesh(zero=2, pipeline=2)], ids=repr)
def test_a_killed_worker_of_a_mesh_takes_no_part_of_the_model_along(four, mesh):
    settings = {"rounds": 60, "batch_size": 4, "loss": lk.models.next_token}
    on = lk.Cluster(four, checkpoint_every=5)
    run = lk.train(gpt(), characters(), mesh, peers=4, on=on, **settings)
    while run.progress < 20:
        time.sleep(0.01)
    os.kill(four.workers[2].pid, signal.SIGKILL)
    ended = run.result(timeout=120)
    assert [event.kind for event in ended.events][:1] == ["lost"]
    one = lk.train(gpt(), characters(), mesh, peers=4, **settings).result()
    assert distance(ended, one) < 1e-5
