"""`lk.connect`: the right workers, on the loopback interface only, once per kernel, and gone with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

import labkit as lk
from labkit.cluster.lab import Lab
from labkit.cluster.local import open_gpus, open_local
from labkit.cluster.request import Request
from labkit.errors import ConnectError, MissingPackage, SettingError
from tests.cluster.kernels import gone, kernel, run


def test_every_listener_of_a_local_lab_is_on_loopback(lab: Lab) -> None:
    processes = [psutil.Process(pid) for pid in (os.getpid(), *(worker.pid for worker in lab.workers))]
    listening = [
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    # scheduler, its dashboard, two nannies, and two sockets of each worker
    assert len(listening) >= 8
    assert set(listening) == {"127.0.0.1"}


def test_connecting_twice_gives_the_same_lab_and_workers_scales_it(lab: Lab) -> None:
    assert lk.connect() is lab
    before = {worker.pid for worker in lab.workers}
    try:
        assert lk.connect(workers=3) is lab
        assert before < {worker.pid for worker in lab.workers}
        assert len(lab.workers) == 3
    finally:
        lk.connect(workers=2)
    assert len(lab.workers) == 2
    assert repr(lab) == "Lab: 2 workers × 1 thread, local"


def test_other_threads_or_memory_than_the_running_ones_are_refused(lab: Lab) -> None:
    with pytest.raises(SettingError, match=r"other threads.*lab\.close\(\)"):
        lk.connect(threads=2)
    with pytest.raises(SettingError, match=r"memory.*lab\.close\(\)"):
        lk.connect(memory="1 GiB")
    assert lk.connect(threads=1, workers=2) is lab


def test_a_lab_closes_quietly_leaves_nothing_and_is_replaced() -> None:
    ended = run(
        """
        import threading, time, psutil
        import labkit as lk

        with lk.connect(workers=1) as lab:
            assert lab.map(abs, [-1, -2]).result() == [1, 2]
            lab.map(time.sleep, [5, 5])     # still running when the block ends
            begin = time.monotonic()
        print("seconds", time.monotonic() - begin)
        lab.close()                         # again: harmless
        me = psutil.Process()
        helper = "multiprocessing.resource_tracker"     # Python's own, ends with this process
        print("children", [c for c in me.children(recursive=True) if helper not in str(c.cmdline())])
        print("listening", [c for c in me.net_connections() if c.status == "LISTEN"])
        print("threads", [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()])
        again = lk.connect(workers=1)
        print("again", again is not lab, len(again.workers))
        """
    )
    assert ended.stderr == ""
    said = dict(line.split(" ", 1) for line in ended.stdout.splitlines())
    assert float(said.pop("seconds")) < 3
    assert said == {"children": "[]", "listening": "[]", "threads": "[]", "again": "True 1"}


def test_limits_of_the_environment_set_the_size() -> None:
    limits = os.environ | {"CPU_LIMIT": "1.5", "MEM_LIMIT": str(3 << 30)}
    ended = run(
        """
        import labkit as lk
        print([(worker.threads, worker.memory) for worker in lk.connect().workers])
        print([worker.memory for worker in lk.connect(workers=2).workers])
        """,
        env=limits,
    )
    assert ended.stderr == ""
    # the second worker joined a lab of one: it may use half of the limit, the first keeps what it was given
    assert ended.stdout.splitlines() == [str([(1, 3 << 30)]), str([3 << 30, 3 << 29])]


KERNEL = """
    import labkit as lk
    lab = lk.connect(workers=1)
    print(*(worker.pid for worker in lab.workers))
    input()
    print(sum(lab.map(abs, range(-3, 0)).result()))
    input()
"""


def test_a_killed_kernel_takes_its_workers_along_and_no_others() -> None:
    with kernel(KERNEL) as first, kernel(KERNEL) as second:
        killed, kept = ([int(pid) for pid in one.hear().split()] for one in (first, second))
        assert len(killed) == len(kept) == 1
        os.kill(first.process.pid, signal.SIGKILL)
        assert gone(killed, timeout=5)
        second.tell("go on")
        assert second.hear() == "6"
        assert all(psutil.pid_exists(pid) for pid in kept)


def test_a_kernel_that_ends_without_closing_leaves_no_worker() -> None:
    ended = run(
        """
        import labkit as lk
        print(*(worker.pid for worker in lk.connect(workers=1).workers))
        raise RuntimeError("the notebook's own mistake")
        """
    )
    assert ended.stderr.splitlines()[-1] == "RuntimeError: the notebook's own mistake"
    assert gone([int(pid) for pid in ended.stdout.split()], timeout=1)


def test_a_script_without_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "lesson.py"
    script.write_text("import labkit as lk\nlk.connect(workers=1)\n")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert 'if __name__ == "__main__":' in ended.stderr.splitlines()[-1]


# -- the workers' environment


def test_the_kernels_own_environment_stays(lab: Lab) -> None:
    assert "MALLOC_TRIM_THRESHOLD_" not in os.environ
    ended = run(
        """
        import os, time
        before = dict(os.environ)
        import labkit as lk
        lab = lk.connect(workers=1)
        changed = lambda: {name for name in before | os.environ if before.get(name) != os.environ.get(name)}
        print(changed())
        lab.restart_workers()
        deadline = time.monotonic() + 20
        while len(changed()) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)        # a worker is back a moment before its nanny has noticed
        print(changed())
        print(lab.client.submit(os.getenv, "OMP_NUM_THREADS").result())
        """,
        env={name: value for name, value in os.environ.items() if "THREADS" not in name},
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["{'__DASK_PARENT_PID'}", "{'__DASK_PARENT_PID'}", "1"]


def test_a_worker_that_comes_back_is_prepared_like_the_first(lab: Lab) -> None:
    def prepared() -> tuple[int, bool]:
        import time

        import torch

        until = time.monotonic() + 20
        while torch.get_num_threads() != 1 and time.monotonic() < until:
            time.sleep(0.05)  # the preparation runs in the background
        return torch.get_num_threads(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    victim = lab.workers[0]
    os.kill(victim.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while victim.pid in (pids := [worker.pid for worker in lab.workers]) or len(pids) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    fresh = lab.workers[0]
    assert fresh.name == victim.name
    assert lab.client.submit(prepared, workers=[fresh.address], pure=False).result(timeout=30) == (1, True)


def test_an_interrupt_of_the_whole_process_group_leaves_the_workers_alone(lab: Lab) -> None:
    pids = [worker.pid for worker in lab.workers]
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert lab.map(abs, range(-4, 0)).result() == [4, 3, 2, 1]
    assert [worker.pid for worker in lab.workers] == pids


def test_a_task_may_have_child_processes(lab: Lab) -> None:
    def load(count: int) -> list[int]:
        import torch

        return [int(batch.sum()) for batch in torch.utils.data.DataLoader(range(count), batch_size=4, num_workers=1)]

    assert lab.map(load, [8]).result() == [[6, 22]]


def test_the_import_of_torch_keeps_no_task_waiting() -> None:
    ended = run(
        """
        import sys, time
        import labkit as lk
        lab = lk.connect(workers=1)
        print(lab.client.submit(lambda: "torch.nn" in sys.modules).result())
        deadline = time.monotonic() + 30
        while not lab.client.submit(lambda: "torch.nn" in sys.modules, pure=False).result():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        print("imported")
        """
    )
    assert ended.stdout.split() == ["False", "imported"]


def test_each_gpu_worker_sees_its_own_gpu() -> None:
    with open_gpus(Request(), devices=["0", "GPU-5d3c"]) as lab:
        assert [worker.gpus for worker in lab.workers] == [("0",), ("GPU-5d3c",)]
        assert repr(lab) == "Lab: 2 workers × 1 thread, gpu"
    with pytest.raises(SettingError, match="share"):
        open_gpus(Request(workers=2), devices=["0"])


def test_gpu_without_a_gpu_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConnectError, match=r"no NVIDIA GPU.*lk\.connect\(\)"):
        lk.connect("gpu")


# -- clusters that others started


def test_an_address_gives_a_lab_whose_end_is_not_the_clusters(lab: Lab) -> None:
    address = lab.client.scheduler.address
    with lk.connect(address) as guest:
        assert guest is lk.connect(address)
        assert repr(guest) == "Lab: 2 workers × 1 thread, tcp"
        assert guest.map(abs, [-5]).result() == [5]
        with pytest.raises(SettingError, match="not this kernel's to scale"):
            lk.connect(address, workers=3)
        with pytest.raises(SettingError, match="brings its own workers"):
            lk.connect(lab.client, workers=3)
    assert guest.closed
    assert lab.map(abs, [-6]).result() == [6]


def test_a_client_stays_open_and_is_known_again(lab: Lab) -> None:
    with lk.connect(lab.client) as guest:
        assert guest is lk.connect(lab.client)
        assert not guest.owned
    assert lab.client.status == "running"


def test_anything_with_get_client_will_do(lab: Lab) -> None:
    class Classroom:  # such as a GatewayCluster
        def get_client(self) -> object:
            from distributed import Client

            return Client(lab.client.scheduler.address, set_as_default=False)

    classroom = Classroom()
    with lk.connect(classroom) as guest:
        assert guest.map(abs, [-7]).result() == [7]
    assert guest.client.status == "closed"  # labkit asked for that client
    assert not lab.closed


@pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning")
@pytest.mark.parametrize(("package", "found"), [("labkit", "9.9.9"), ("torch", "1.0"), ("python", "3.5.0")])
def test_workers_with_another_version_are_named(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, package: str, found: str
) -> None:
    import distributed.versions

    real = distributed.versions.get_package_info  # of this process: the client's and the scheduler's versions

    def altered(packages: Iterable[str]) -> dict[str, str | None]:
        told = real(packages)
        return told | {package: found} if package in told else told

    monkeypatch.setattr(distributed.versions, "get_package_info", altered)
    sentence = rf"worker tcp://\S+ (has|has no) \S+.* while this kernel has {found}: install {package} {found} there"
    with pytest.raises(ConnectError, match=sentence):
        lk.connect(lab.client.scheduler.address)


def test_a_worker_without_labkit_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    real = lab.client.get_versions()
    monkeypatch.setattr(
        "distributed.Client.get_versions",
        lambda self, packages: {
            **{"client": {"packages": {**real["client"]["packages"], "labkit": "0.1", "torch": "2.13.0"}}},
            **{"scheduler": {"packages": {**real["scheduler"]["packages"], "labkit": "0.1"}}},
            **{
                "workers": {
                    at: {"packages": {**it["packages"], "torch": "2.13.0+cpu"}} for at, it in real["workers"].items()
                }
            },
        },
    )
    with pytest.raises(ConnectError, match=r"worker \S+ has no labkit while this kernel has 0\.1: install"):
        lk.connect(lab.client.scheduler.address)


def test_an_open_connection_to_another_machine_is_warned_of(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.cluster.remote._reach", lambda *_: "192.0.2.7")
    with pytest.warns(UserWarning, match=r"not encrypted.*use tls://") as caught:
        lk.connect(lab.client.scheduler.address).close()
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]


def test_a_tls_lab_takes_no_one_without_its_certificates() -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed: no certificates can be made")
    request = Request.of(1, None, None, security=True, timeout=10)
    with open_local(request) as private:
        address = private.client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        with lk.connect(address, security=request.security) as guest:
            assert repr(guest) == "Lab: 1 worker × 1 thread, tls"
            assert guest.map(abs, [-1]).result() == [1]
        with pytest.raises(ConnectError, match="needs the cluster's certificates"):
            lk.connect(address)
        with pytest.raises(ConnectError, match="does not fit the certificates"):
            lk.connect(address, security=True)
        with pytest.raises(ConnectError, match=r"whether it is tls:// there"):
            lk.connect(address.replace("tls", "tcp"), timeout=1.0)


# -- what does not work ends in a sentence


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(ConnectError, match=f"nothing listens at tcp://127.0.0.1:{port}"):
        lk.connect(f"tcp://127.0.0.1:{port}")
    assert time.monotonic() - begin < 2


def test_somebody_listens_but_is_no_scheduler() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        begin = time.monotonic()
        with pytest.raises(ConnectError, match="no Dask scheduler answers"):
            lk.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}", timeout=1.0)
        assert time.monotonic() - begin < 3


def test_an_address_that_swallows_everything_ends_in_time() -> None:
    begin = time.monotonic()
    with pytest.raises(ConnectError, match=r"nothing (answered|listens)"):
        lk.connect("tcp://192.0.2.1:8786", timeout=2.0)  # TEST-NET-1 is routed nowhere
    assert time.monotonic() - begin < 4


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("tcp://no-such-host.invalid:8786", "no machine is called 'no-such-host.invalid'"),
        ("tcp://127.0.0.1", "names no port"),
        ("tcp://127.0.0.1:port", "is no address"),
        ("tcp://:8786", "is no address"),
        ("locahost", 'not understood: give nothing at all .*"gpu".*"tcp://.*"gateway".*get_client'),
        (42, "not understood"),
    ],
)
def test_targets_that_mean_nothing(target: object, sentence: str) -> None:
    with pytest.raises(ConnectError, match=sentence):
        lk.connect(target)


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"workers": 1.5},
        {"workers": True},
        {"threads": -1},
        {"memory": "plenty"},
        {"memory": 0},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"security": "yes"},
    ],
)
def test_arguments_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(wrong))}="):
        lk.connect("never reached", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "module", "extra"), [("gateway", "dask_gateway", "classroom"), ("ssh://me@there", "asyncssh", "ssh")]
)
def test_extras_that_are_not_installed_are_named(
    monkeypatch: pytest.MonkeyPatch, target: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # so Python refuses the import
    with pytest.raises(MissingPackage, match=rf'pip install "labkit\[{extra}\]"'):
        lk.connect(target)


def test_dashboard_link_follows_the_hub(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    port = lab.client.scheduler_info()["services"]["dashboard"]
    assert lab.dashboard == f"http://127.0.0.1:{port}/status"
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    assert lab.dashboard == f"/user/ada/proxy/{port}/status"
