"""What labkit changes in dask-gateway's own backend: whose a cluster's files and processes are."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

import labkit as lk
from tests.cluster.gateways import running_gateway, user
from tests.system import temporary_user

pytest.importorskip("dask_gateway_server", reason='dask-gateway is not installed: pip install "labkit[classroom]"')
pytestmark = pytest.mark.paired


def owners(*paths: str | Path) -> list[tuple[int, int]]:
    """Whose folders these are."""
    return [(Path(it).stat().st_uid, Path(it).stat().st_gid) for it in paths]


def test_a_students_workers_run_under_their_account_and_no_other_folder_becomes_theirs(tmp_path: Path) -> None:
    """dask-gateway's own LocalBackend gives away what the letters of a path name: `/`, and the folder it runs in."""
    with temporary_user() as name, running_gateway(tmp_path / "class", authenticator="pam") as gateway:
        before = owners("/", gateway.folder)
        try:
            with user(gateway, name), lk.connect("gateway", workers=1) as lab:
                account = pwd.getpwnam(name)
                assert lab.map(lambda _: os.getuid(), [0]).result() == [account.pw_uid]
                (folder,) = lab.map(lambda _: str(Path.cwd()), [0]).result()
                assert owners(folder) == [(account.pw_uid, account.pw_gid)]
                assert Path(folder).stat().st_mode & 0o077 == 0
                assert owners("/", gateway.folder) == before
        finally:
            for path, owner in zip(("/", gateway.folder), before, strict=True):  # a failure is not to harm the machine
                os.chown(path, *owner)
