"""`lk.connect("ssh://…")` against a real OpenSSH server on the loopback interface, with keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import labkit as lk
from labkit.errors import ConnectError, SettingError
from tests.cluster.kernels import gone
from tests.system import needs

pytest.importorskip("asyncssh", reason='asyncssh is not installed: pip install "labkit[ssh]"')


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server that lets this user in with a fresh key; its port, once ~/.ssh/config knows it."""
    sshd = needs("sshd")
    home = tmp_path_factory.mktemp("home")
    settings = home / ".ssh"
    settings.mkdir(mode=0o700)
    for name in ("host", "user"):
        keygen = [needs_keygen(), "-q", "-t", "ed25519", "-N", "", "-f", str(settings / name)]
        subprocess.run(keygen, check=True, timeout=30)
    shutil.copy(settings / "user.pub", settings / "authorized")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    (settings / "sshd").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {settings}/host\nAuthorizedKeysFile {settings}/authorized\n"
        f"PidFile {settings}/pid\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"
    )
    (settings / "known").write_text(f"[127.0.0.1]:{port} {(settings / 'host.pub').read_text()}")
    (settings / "config").write_text(
        f"Host 127.0.0.1\n  Port {port}\n  IdentityFile {settings}/user\n  UserKnownHostsFile {settings}/known\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where a service manager would make it
    daemon = subprocess.Popen([sshd, "-D", "-f", str(settings / "sshd")], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(home))
            yield port
    finally:
        daemon.terminate()
        daemon.wait(10)


def needs_keygen() -> str:
    keygen = shutil.which("ssh-keygen")
    return keygen or str(pytest.skip("there is no ssh-keygen on this machine"))


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("sshd did not start")


def test_workers_on_a_host_reached_by_ssh_compute_and_end(server: int) -> None:
    with lk.connect(f"ssh://{getpass.getuser()}@127.0.0.1", workers=2) as lab:
        assert repr(lab) == "Lab: 2 workers × 1 thread, ssh"
        assert lab.map(abs, [-1, -2, -3]).result(timeout=60) == [1, 2, 3]
        pids = [worker.pid for worker in lab.workers]
        listening = {
            connection.laddr.ip
            for pid in pids
            for process in (psutil.Process(pid), *psutil.Process(pid).parents()[:1])
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
    assert gone(pids, timeout=10)


def test_a_stranger_is_not_let_in(server: int) -> None:
    with pytest.raises(ConnectError, match=r"no cluster could be started over ssh://nobody-here@127\.0\.0\.1"):
        lk.connect("ssh://nobody-here@127.0.0.1")


def test_workers_are_spread_evenly() -> None:
    with pytest.raises(SettingError, match="give a multiple"):
        lk.connect("ssh://127.0.0.1,localhost", workers=3)
