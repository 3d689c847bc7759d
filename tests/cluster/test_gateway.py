"""`lk.connect("gateway")` against a real Dask Gateway, configured as labkit writes it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.config
import psutil
import pytest

import labkit as lk
from labkit.cluster.gateway import last_lines, open_gateway, release
from labkit.cluster.lab import Lab
from labkit.cluster.workers import WorkerRequest
from labkit.errors import ConnectError, SettingError
from tests.cluster.gateways import PASSWORD, Gateway, running_gateway, user
from tests.cluster.kernels import gone, kernel

dask_gateway = pytest.importorskip("dask_gateway")
pytest.importorskip("dask_gateway_server", reason='dask-gateway is not installed: pip install "labkit[classroom]"')
pytestmark = pytest.mark.paired

# A notebook that trains, then does as it is told.
NOTEBOOK = """
    import time, torch, labkit as lk
    lab = lk.connect("gateway", workers=2)
    print(lab.cluster.name, *sorted(worker.pid for worker in lab.workers))
    input()
    began = time.time()
    run = lk.train(torch.nn.Linear(64, 10), lk.data.load("digits"), rounds=200, on=lab)
    print(began, run.result().final.round, time.time())
    while input() == "map":
        print(*lab.map(abs, [-1, -2]).result())
    lab.close()
    print("closed")
    input()
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def lab(gateway: Gateway) -> Iterator[Lab]:
    with user(gateway, "ada"), lk.connect("gateway", workers=2) as lab:
        yield lab


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_notebooks_of_one_student_have_a_cluster_each_and_train_at_once(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in gateway.environment("ada").items():
        monkeypatch.setenv(name, value)
    with kernel(NOTEBOOK) as first, kernel(NOTEBOOK) as second:
        (one, *its), (other, *others) = first.hear().split(), second.hear().split()
        assert one != other and len(its) == len(others) == 2 and not {*its} & {*others}
        for notebook in (first, second):
            notebook.tell("train")
        (began, rounds, ended), (since, also, until) = first.hear().split(), second.hear().split()
        assert rounds == also == "200"
        assert max(float(began), float(since)) < min(float(ended), float(until))  # both were under way together
        first.tell("close")
        assert first.hear() == "closed"
        assert gone([int(pid) for pid in its], timeout=20)
        second.tell("map")
        assert second.hear() == "1 2"
        assert all(psutil.pid_exists(int(pid)) for pid in others)
        second.tell("close")
        assert second.hear() == "closed"
    assert gone([int(pid) for pid in others], timeout=20)


def test_a_kernel_that_is_restarted_finds_its_cluster_again(gateway: Gateway) -> None:
    from jupyter_client.manager import start_new_kernel

    heard: list[str] = []

    def cell(client: object, code: str) -> str:
        heard.clear()
        reply = client.execute_interactive(  # type: ignore[attr-defined]
            code,
            timeout=90,
            output_hook=lambda it: heard.append(it["content"].get("text", "")),
            allow_stdin=False,
        )
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(heard).strip()

    manager, client = start_new_kernel(kernel_name="python3", env=gateway.environment("grace"))
    try:
        begin = "import labkit as lk; lab = lk.connect('gateway', workers=1); print(lab.cluster.name)"
        name = cell(client, begin)
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        assert cell(client, begin) == name
        assert cell(client, "print(lab.map(abs, [-3]).result(), len(lab.workers)); lab.close()") == "[3] 1"
        assert cell(client, begin) != name  # that one is closed
        cell(client, "lab.close()")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_one_lends_a_cluster_and_stays_its_owner(gateway: Gateway, lab: Lab) -> None:
    with lk.connect(lab.cluster) as guest:
        assert guest.map(abs, [-4]).result() == [4]
        assert not guest.owned
        with pytest.raises(SettingError, match="not this kernel's to scale"):
            guest.scale(1)
    assert lab.map(abs, [-5]).result() == [5]


def test_ones_own_cluster_is_scaled_and_its_workers_killed(lab: Lab) -> None:
    assert repr(lab) == "Lab: 2 workers × 1 thread, gateway" and lab.dashboard is None
    assert lk.connect("gateway") is lab
    lab.scale(3)
    assert len(lab.workers) == 3
    lk.connect("gateway", workers=2)
    assert len(lab.workers) == 2
    with pytest.raises(SettingError, match=r"bears fewer workers .*limit of 4"):
        lab.scale(5)
    before = {worker.pid for worker in lab.workers}
    killed = lab.workers[1].pid
    lab.kill(1)
    wait_until(lambda: len(lab.workers) == 2 and killed not in {worker.pid for worker in lab.workers})
    assert len(before & {worker.pid for worker in lab.workers}) == 1
    assert lab.launch(os.getpid, ranks=2).result()
    with pytest.raises(SettingError, match="no worker 7"):
        lab.kill(7)
    with pytest.raises(SettingError, match="cannot be slowed"):
        lab.slow(0, 2)
    with pytest.raises(SettingError, match="leave threads="):
        lk.connect("gateway", threads=2)


def test_a_gateway_that_lets_nobody_in_is_not_there_or_not_known_is_named(gateway: Gateway) -> None:
    request = WorkerRequest.of(1, None, None, None, 10)
    with user(gateway, "eve", "guessed"), pytest.raises(ConnectError, match="does not let this kernel in"):
        open_gateway(request)
    nowhere = Gateway(gateway.folder, 9)
    with user(nowhere, "ada"), pytest.raises(ConnectError, match=r"no Dask Gateway answers at http://127\.0\.0\.1:9/"):
        open_gateway(request)
    unknown = dask.config.set({"gateway.address": None})
    with unknown, pytest.raises(ConnectError, match=r"no Dask Gateway is known here .* set DASK_GATEWAY__ADDRESS"):
        open_gateway(request)


def test_what_a_scheduler_wrote_that_did_not_start_is_in_the_error_and_for_its_owner_only(tmp_path: Path) -> None:
    def asked(question: Callable[[Any], Any]) -> Any:
        client = dask_gateway.Gateway()
        try:
            return question(client)
        finally:
            release(client)

    broken = "import sys\nc.ClusterConfig.scheduler_cmd = [sys.executable, '-c', 'import a_package_that_is_missing']\n"
    with running_gateway(tmp_path / "class", broken) as gateway:
        with user(gateway, "ada"):
            with pytest.raises(ConnectError, match=r"(?s)gave no cluster.*Its log ends:.*No module named 'a_package_"):
                open_gateway(WorkerRequest.of(1, None, None, None, 10))
            (failed,) = asked(lambda own: own.list_clusters(status="failed"))
            assert "a_package_that_is_missing" in asked(lambda own: last_lines(own, failed.name))
        with user(gateway, "grace"):
            assert asked(lambda other: last_lines(other, failed.name)) == ""


def test_a_gateway_that_was_killed_finds_its_clusters_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in gateway.environment("alan").items():
        monkeypatch.setenv(name, value)
    program = """
        import labkit as lk
        while input():
            lab = lk.connect("gateway", workers=1)
            print(lab.cluster.name, lab.workers[0].pid, *lab.map(abs, [-6]).result())
        lab.close()
        print("closed")
    """
    with kernel(program) as notebook:
        notebook.tell("connect")
        before = notebook.hear()
        gateway.kill()
        gateway.start()
        notebook.tell("connect")
        assert notebook.hear() == before
        notebook.tell("")
        assert notebook.hear() == "closed"
    assert gone([int(before.split()[1])], timeout=20)
    assert PASSWORD not in (gateway.folder / "log").read_text()
