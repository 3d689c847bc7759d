"""Faults that are really there, each planted in a process of its own, are found with their remedies."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from distributed import Client, Security

import labkit as lk
from labkit.cluster import deadlines
from labkit.cluster.doctor import clusters
from labkit.cluster.findings import Check
from labkit.cluster.lab import Lab
from labkit.cluster.local import local_cluster
from labkit.cluster.machine_checks import EXAMINATIONS, known_causes
from labkit.cluster.stale import end, stale
from labkit.errors import ConnectError
from tests.cluster.kernels import gone, run
from tests.system import absent

FIND = """
import json, sys
from labkit.cluster.machine_checks import EXAMINATIONS
print(json.dumps(EXAMINATIONS[sys.argv[1]]()))
"""


def found(name: str, plant: str = "", space: str = "", **environment: str) -> Check:
    """What is found in a process of its own, after the shell commands `plant`, in a name space of its own."""
    shell = f"{plant}\nexec {shlex.quote(sys.executable)} -c {shlex.quote(FIND)} {shlex.quote(name)}"
    command = ["bash", "-ec", shell]
    if space:
        tried = subprocess.run(["unshare", space, "true"], capture_output=True, check=False)
        if tried.returncode:
            absent("name spaces cannot be made here: they need root")
        command = ["unshare", space, *command]
    everything = os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, env=everything, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return Check(*json.loads(done.stdout))


def test_a_home_that_cannot_be_written_into() -> None:
    check = found("home", HOME="/proc")
    assert check.status == "fail" and check.found.startswith("/proc cannot be written into")
    assert check.remedy == "choose a folder of yours: set HOME to another folder."


def test_a_home_that_is_full(tmp_path: Path) -> None:
    full = f"mount -t tmpfs -o size=32k none {tmp_path}; head -c 32k /dev/zero > {tmp_path}/all || true"
    check = found("home", full, space="-m", HOME=str(tmp_path))
    assert check.status == "fail" and check.found == f"{tmp_path} is full"
    assert check.remedy.startswith("empty it, ask for a larger quota")


def test_bytecode_that_may_not_be_kept(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("")

    def slow(kept: str) -> list[str] | None:
        program = "import json; from labkit.cluster.machine_checks import compiled_anew as it; print(json.dumps(it()))"
        settings = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": kept}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=settings, check=True)
        found: list[str] | None = json.loads(done.stdout)
        return found

    found = slow("1")
    assert found and "PYTHONDONTWRITEBYTECODE is set" in found[0]
    assert slow("") is None
    subprocess.run(shlex.split(found[1].partition(", once")[0]), check=True)
    assert slow("1") is None


def test_no_folder_for_temporary_files_and_another_than_wished(tmp_path: Path) -> None:
    check = found("temporary files", TMPDIR="/proc")
    assert check.status == "warn" and check.found.startswith("TMPDIR=/proc cannot be written into")
    if any(Path(sys.prefix).is_relative_to(it) for it in ("/tmp", "/var/tmp")):
        pytest.skip("Python itself lies in a folder for temporary files, which cannot be taken away")
    locked = "cd /proc; for folder in /tmp /var/tmp; do mount -t tmpfs -o ro none $folder; done"
    check = found("temporary files", locked, space="-m", TMPDIR="/proc", PYTHONPATH=str(Path(lk.__file__).parents[1]))
    assert check.status == "fail" and "No usable temporary directory" in check.found
    assert check.remedy == "set TMPDIR to a folder that you may write into."


def test_few_file_handles_and_few_processes() -> None:
    for limit, status in ((60, "fail"), (500, "warn")):
        check = found("file handles", f"ulimit -n {limit}")
        assert (check.status, check.found) == (status, f"{limit} at most")
        assert check.remedy.startswith("ulimit -n 4096")
    check = found("process limit", "ulimit -u 20")
    assert check.status == "fail" and check.found.startswith("0 more") and "ulimit -u" in check.remedy
    assert found("process limit").status == "ok"


def test_names_that_nobody_knows(tmp_path: Path) -> None:
    check = found("names", "hostname nowhere.invalid", space="-u")
    assert check.status == "warn" and check.found.startswith("'nowhere.invalid' has no address")
    assert "/etc/hosts" in check.remedy
    (nothing := tmp_path / "nothing").touch()
    lost = f"for file in hosts resolv.conf; do mount --bind {nothing} /etc/$file; done"
    check = found("names", lost, space="-m")
    assert check.status in ("warn", "fail") and "has no address" in check.found


def test_a_port_that_is_taken() -> None:
    try:
        taken = socket.create_server(("127.0.0.1", 8888))
    except OSError:
        pytest.skip("somebody else has it")
    with taken:
        assert found("port").status == "ok"  # by a parent, as a notebook's server is
        hold = "import socket; it = socket.create_server(('127.0.0.1', 8888)); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    check = found("port")
    holder.communicate()
    assert check.status == "warn" and f"(process {holder.pid})" in check.found and "PORT=" in check.remedy


def test_a_proxy_that_is_missing_behind_a_hub(tmp_path: Path) -> None:
    hide = (
        "import importlib.metadata as it\nreal = it.version\ndef version(name):\n"
        "    if name == 'jupyter-server-proxy':\n        raise it.PackageNotFoundError(name)\n    return real(name)\n"
        "it.version = version\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hide)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    check = found("JupyterHub", PYTHONPATH=path, JUPYTERHUB_SERVICE_PREFIX="/user/ada/")
    assert check.status == "warn" and check.remedy.endswith("pip install jupyter-server-proxy.")


@pytest.fixture
def broken_torch(tmp_path: Path) -> str:
    """A PYTHONPATH on which torch does not import."""
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object file')")
    return os.pathsep.join([str(tmp_path), *sys.path])


def test_a_torch_that_does_not_import_ends_the_command_with_1(broken_torch: str) -> None:
    command = [sys.executable, "-m", "labkit", "doctor"]
    environment = os.environ | {"PYTHONPATH": broken_torch}
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment, check=False)
    assert done.returncode == 1
    assert "✗ import torch     ImportError: libtorch_cpu.so: cannot open shared object file" in done.stdout
    assert "pip install --force-reinstall torch" in done.stdout


def test_connect_names_the_cause_itself_where_it_is_known(tmp_path: Path) -> None:
    """Not "ask lk.doctor()" alone, which would go round in a circle."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif any('multiprocessing' in it for it in sys.orig_argv):\n    os._exit(3)\n"
    )
    program = """
        import resource, sys, labkit as lk
        from labkit.errors import ConnectError
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        if len(sys.argv) == 1:
            resource.setrlimit(resource.RLIMIT_NPROC, (20, hard))
        try:
            lk.connect(workers=1)
        except ConnectError as error:
            print(error)
    """
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = run(program, timeout=120, env=os.environ | {"PYTHONPATH": path})
    assert "1 local worker could not be started" in done.stdout, done.stderr[-2000:]
    assert "process limit: 0 more processes" in done.stdout and "ulimit -u" in done.stdout


def test_what_cannot_be_found_out_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that hangs, and a mount that answers nothing, keep neither the doctor nor an error from its words."""
    hangs = tmp_path / "nvidia-smi"
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.setattr(deadlines, "PROGRAM", 2.0)
        assert "TimeoutExpired" in next(it.found for it in known_causes() if it.name == "GPUs")
    usual = shutil.disk_usage

    def disk_usage(folder: Path) -> object:
        if str(folder) == "/dev/shm":
            raise OSError("Stale file handle")
        return usual(folder)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    told = {check.name: check for check in lk.doctor().checks}
    assert told["shared memory"].status == "fail" and "Stale file handle" in told["shared memory"].found
    assert told["a worker"].status == "ok"


def test_a_port_that_may_not_be_opened_is_not_called_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refused)
    assert EXAMINATIONS["port"]().found == "8888 cannot be opened (Permission denied)"


def test_old_clusters_are_found_and_ended(tmp_path: Path) -> None:
    """A scheduler whose parent has gone."""
    start = (
        f"{shlex.quote(sys.executable)} -m dask scheduler --host 127.0.0.1 --port 0 --no-dashboard >/dev/null 2>&1 &"
    )
    done = subprocess.run(["bash", "-c", f"{start} echo $!"], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while pid not in [process.pid for process in stale()]:
        assert time.monotonic() < deadline, psutil.Process(pid).parents()
        time.sleep(0.1)
    check = clusters()
    assert check.status == "warn" and "--end-stale" in check.remedy
    end([process for process in stale() if process.pid == pid])  # and nobody else's
    assert gone([pid], timeout=1)


def test_what_somebody_alive_has_started_is_not_old() -> None:
    """In a container without an init the first process is Python or Jupyter itself, and no sign of an orphan."""
    if subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode:
        absent("name spaces cannot be made here: they need root")
    first = """
import subprocess, sys
command = [sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
scheduler = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
look = "from labkit.cluster.stale import stale; print(stale())"
print(subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout)
scheduler.kill()
scheduler.wait()
"""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", first]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_other_programs_that_use_multiprocessing_are_not_old_clusters() -> None:
    started = []
    for preloaded in ("numpy", "labkit.cluster.lifeline"):
        code = f"import time; 'from multiprocessing.forkserver import main', '{preloaded}'; time.sleep(60)"
        start = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} >/dev/null 2>&1 & echo $!"
        started.append(int(subprocess.run(["bash", "-c", start], capture_output=True, text=True, check=True).stdout))
    try:
        deadline = time.monotonic() + 20
        while started[1] not in (found := [process.pid for process in stale()]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert started[0] not in found
    finally:
        end([psutil.Process(pid) for pid in started])


# -- a lab


def test_a_lab_that_is_well(lab: Lab) -> None:
    report = lk.doctor(lab)
    assert report.ok, report
    told = {check.name: check.found for check in report.checks}
    assert told["workers"] == "2 workers" and told["torch there"] == "imported on 2 workers"
    assert told["addresses"] == "ranks will meet at 127.0.0.1 (2)"
    with pytest.raises(ConnectError, match="is no lab"):
        lk.doctor("tcp://127.0.0.1:8786")


def test_a_client_that_a_cluster_makes_for_the_asking_is_closed_and_no_other_one(lab: Lab) -> None:
    running = {it for it in Client._instances if it.status == "running"}

    class Makes:
        def get_client(self) -> Client:
            return Client(lab.cluster, set_as_default=False)

    class Has:
        def get_client(self) -> Client:
            return lab.client

    assert lk.doctor(Makes()).ok and lk.doctor(Has()).ok
    assert {it for it in Client._instances if it.status == "running"} == running and not lab.closed


STRANGE = """
import importlib.metadata, sys, time

now, known = time.time, importlib.metadata.version

def version(name):
    if name == "labkit":
        raise importlib.metadata.PackageNotFoundError(name)
    return "1.0" if name == "torch" else known(name)

time.time = lambda: now() + 120
importlib.metadata.version = version
sys.modules["labkit"] = None
"""


@pytest.fixture
def strange(tmp_path: Path) -> Iterator[Client]:
    """A plain cluster: one worker with an old torch, without labkit, and with a clock two minutes ahead."""
    (tmp_path / "sitecustomize.py").write_text(STRANGE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    plain = Security(require_encryption=False)
    with local_cluster(1, threads=1, memory=1 << 30, security=plain) as cluster:
        cluster.scale(0)
        command = [
            sys.executable,
            "-m",
            "dask",
            "worker",
            cluster.scheduler_address,
            "--no-nanny",
            "--host",
            "127.0.0.1",
        ]
        worker = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with Client(cluster, set_as_default=False) as client:
                deadline = time.monotonic() + 60
                while [it["name"] for it in client.scheduler_info(-1)["workers"].values()] in ([], [0]):
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                yield client
        finally:
            worker.terminate()
            worker.wait(10)


@pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning")
def test_workers_with_another_torch_without_labkit_and_with_a_wrong_clock(
    strange: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.cluster.lab_checks.other_people", lambda: ("ada",))
    report = lk.doctor(strange)
    told = {check.name: check for check in report.checks}
    assert not report.ok
    versions = told["versions"]
    assert "has torch 1.0 while this kernel has" in versions.found and "has no labkit while" in versions.found
    assert versions.status == "fail" and versions.remedy.startswith("install labkit")
    clocks = told["clocks"]
    assert (clocks.status == "warn" and "120." in clocks.found) or "119." in clocks.found
    assert "ahead of this one" in clocks.found and "timedatectl" in clocks.remedy
    encryption = told["encryption"]
    assert encryption.status == "warn" and "1 other user of this machine can run code as you" in encryption.found
    with pytest.raises(ConnectError, match="has no labkit"):
        lk.connect(strange)
