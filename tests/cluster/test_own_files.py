"""What a lab puts on the disk is for its user alone, and where it lies is nobody else's choice."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import pwd
import stat
import tempfile
from pathlib import Path

import psutil
import pytest
import torch

import labkit as lk
from labkit.cluster.lab import Lab
from labkit.cluster.machine import other_people, own_folder
from labkit.data.images import Remote
from labkit.errors import ConnectError, DataError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def alone(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def test_the_folder_is_the_same_each_time_and_this_users_alone(temporary: Path) -> None:
    folder = own_folder()
    assert folder == own_folder() and folder.parent == temporary and alone(folder)


@pytest.mark.parametrize("way", ["open to all", "a link", "a file", "somebody else's"])
def test_a_folder_that_somebody_else_may_have_made_is_not_used(temporary: Path, way: str) -> None:
    known = temporary / f"labkit-{os.geteuid()}"
    match way:
        case "open to all":
            known.mkdir()
            known.chmod(0o777)
        case "a link":
            (temporary / "theirs").mkdir(mode=0o700)
            known.symlink_to(temporary / "theirs")
        case "a file":
            known.write_text("")
        case _:
            if os.geteuid() != 0:
                pytest.skip("only root can make a folder of another user")
            known.mkdir(mode=0o700)
            os.chown(known, 65534, 65534)
    assert own_folder() != known and alone(own_folder())


def test_scratch_folders_of_a_lab_and_the_socket_of_its_template_are_out_of_others_reach(lab: Lab) -> None:
    def closed(path: str) -> bool:
        return any(alone(folder) for folder in (Path(path), *Path(path).parents))

    scratch = [worker["local_directory"] for worker in lab.known().values()]
    scratch += [lab.cluster.scheduler.local_directory, *(it.local_directory for it in lab.cluster.workers.values())]
    assert all(closed(it) for it in scratch), scratch
    socket = multiprocessing.forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    assert socket is None or (socket[0] != "\0" and closed(str(Path(socket).parent)))


def test_no_secret_of_a_lab_is_in_a_command_line_or_an_environment(lab: Lab) -> None:
    key = lab.client.security.tls_client_key.encode()
    for pid in (os.getpid(), *(worker.pid for worker in lab.workers)):
        for name in ("cmdline", "environ"):
            text = Path(f"/proc/{pid}/{name}").read_bytes()
            assert key[30:60] not in text and b"PRIVATE KEY" not in text
        assert not [it.path for it in psutil.Process(pid).open_files() if it.path.endswith((".pem", ".crt"))]


def test_downloads_go_where_nobody_else_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / name)
    with pytest.raises(DataError, match="could not be downloaded"):
        Remote("tiny", ("http://127.0.0.1:9",), {"it": "0" * 64}).fetch("it")
    assert alone(tmp_path / "labkit") and alone(tmp_path / "labkit" / "tiny")


def test_an_address_with_a_password_is_refused_without_repeating_it() -> None:
    for scheme in ("ssh", "tls", "tcp"):
        with pytest.raises(ConnectError, match="no room for a password") as caught:
            lk.connect(f"{scheme}://ada:{'geheim'}@there:8786")
        assert "geheim" not in str(caught.value)


def test_a_history_tells_the_kind_of_its_lab_and_no_secret_of_it(lab: Lab) -> None:
    run = lk.train(torch.nn.Linear(64, 10), lk.data.load("digits"), rounds=1, on=lk.Cluster(lab))
    said = repr(run.result().settings)
    assert "'lab': 'local'" in said
    for secret in (lab.client.scheduler.address, "PRIVATE", "Security", str(lab.cluster.scheduler.secret)):
        assert secret not in said


def test_other_people_are_those_with_a_shell_or_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def account(name: str, uid: int, shell: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", uid, uid, "", "/", shell))

    people = [account("ada", 1001, "/bin/bash"), account("me", 1002, "/bin/sh"), account("daemon", 7, "/bin/sh")]
    people.append(account("service", 1003, "/usr/sbin/nologin"))
    monkeypatch.setattr(pwd, "getpwall", lambda: people)
    monkeypatch.setattr(os, "geteuid", lambda: 1002)
    monkeypatch.setattr("labkit.cluster.machine.psutil.process_iter", lambda: iter(()))
    assert other_people() == ("ada",)
