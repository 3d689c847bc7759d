"""`lk.connect("ssh://…")` against a real OpenSSH server on the loopback interface, with keys of its own."""

from __future__ import annotations

import getpass
import os
import pwd
import re
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
from tests.system import for_everybody, needs, temporary_user

pytest.importorskip("asyncssh", reason='asyncssh is not installed: pip install "labkit[ssh]"')

LESSON = Path(__file__).parents[2] / "notebooks" / "19_your_own_cluster.ipynb"


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
        f"ListenAddress 127.0.0.1:{port}\nHostKey {settings}/host\n"
        f"AuthorizedKeysFile {settings}/authorized .ssh/authorized_keys\n"
        f"PidFile {settings}/pid\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"
    )
    (settings / "known").write_text(f"[127.0.0.1]:{port} {(settings / 'host.pub').read_text()}")
    (settings / "config").write_text(
        f"Host 127.0.0.1\n  Port {port}\n  IdentityFile {settings}/user\n  UserKnownHostsFile {settings}/known\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where a service manager would make it
    command = [sshd, "-D", "-f", str(settings / "sshd")]
    command = for_everybody(command) if os.geteuid() == 0 else command
    daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
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
    (line,) = set(re.findall(r'lk\.connect\("(ssh://.*?)"\)', LESSON.read_text().replace("\\", "")))
    address = line.replace("you@host1,host2", f"{getpass.getuser()}@127.0.0.1")
    with lk.connect(address, workers=2) as lab:
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


def test_workers_run_as_the_other_user_whose_name_stands_in_the_address(server: int) -> None:
    """One who has let this user's key in."""
    with temporary_user() as name:
        account = pwd.getpwnam(name)
        known = Path(account.pw_dir) / ".ssh" / "authorized_keys"
        known.parent.mkdir()
        known.write_text((Path.home() / ".ssh" / "user.pub").read_text())
        with lk.connect(f"ssh://{name}@127.0.0.1", workers=2) as lab:
            lab.client.wait_for_workers(2, timeout=60)
            assert lab.launch(os.getuid, ranks=2).result() == [account.pw_uid] * 2
            pids = [worker.pid for worker in lab.workers]
            assert {psutil.Process(pid).uids().real for pid in pids} == {account.pw_uid}
        assert gone(pids, timeout=10)


def test_a_stranger_is_not_let_in(server: int) -> None:
    with pytest.raises(ConnectError, match=r"no cluster could be started over ssh://nobody-here@127\.0\.0\.1"):
        lk.connect("ssh://nobody-here@127.0.0.1")


def test_workers_are_spread_evenly() -> None:
    with pytest.raises(SettingError, match="give a multiple"):
        lk.connect("ssh://127.0.0.1,localhost", workers=3)
