"""A cluster that somebody starts by hand, by the very commands of lesson 19, and what its doctor and its puzzle say."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

import labkit as lk
from labkit.__main__ import main
from labkit.cluster.certificates import security_in, write_certificates
from labkit.errors import CheckFailed, ConnectError, SettingError
from tests.cluster.own_clusters import COMMANDS, ROOT, WORDS, shell, started

pytestmark = [pytest.mark.slow, pytest.mark.paired]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the lesson's first command has been given."""
    home = tmp_path_factory.mktemp("home")
    subprocess.run(
        ["bash", "-c", shell(COMMANDS[0], home, 0)],
        env=os.environ | {"HOME": str(home)},
        check=True,
        capture_output=True,
    )
    return home


def test_the_lessons_commands_make_a_cluster_that_solves_its_puzzle(home: Path) -> None:
    assert [line.split()[0] for line in COMMANDS if line and line[0] not in "#T"] == ["python", "scp", "dask", "dask"]
    *_, worker = COMMANDS
    with started(home, [*COMMANDS, worker]) as address, lk.connect(address, security=home / "cluster") as lab:
        assert repr(lk.check.guarded(lab)) == "✓ guarded: 3 cases right, 3 of 3 points"
        for stranger in (True, None):
            with pytest.raises(ConnectError, match="certificates"):
                lk.connect(address.replace("127.0.0.1", "localhost"), security=stranger)
        with pytest.raises(CheckFailed, match=r"gave 2 workers; expected 3 workers: start more"):
            lk.check.guarded(lab, workers=3)
    with pytest.raises(CheckFailed, match="This lab is closed"):
        lk.check.guarded(lab)


def test_pages_that_other_machines_see_are_found_by_doctor_and_puzzle(home: Path) -> None:
    lines = [line.replace("--dashboard-address 127.0.0.1:0", "--dashboard-address :0") for line in COMMANDS]
    with started(home, [*lines, lines[-1]]) as address, lk.connect(address, security=home / "cluster") as lab:
        told = {check.name: check for check in lk.doctor(lab).checks}["pages"]
        assert told.status == "warn" and "--dashboard-address 127.0.0.1:0" in told.remedy
        assert len(re.findall(r"\d{4,}", told.found)) == 3  # a scheduler and two workers
        with pytest.raises(CheckFailed, match=r"gave pages at port \d+ for all machines") as caught:
            lk.check.guarded(lab)
        assert (caught.value.points, caught.value.of) == (2, 3)


def test_a_lab_without_an_address_does_not_solve_the_puzzle(lab: lk.Lab) -> None:
    with pytest.raises(CheckFailed, match="start a cluster of your own"):
        lk.check.guarded(lab)
    with pytest.raises(CheckFailed, match="this is an int"):
        lk.check.guarded(3)


def test_certificates_are_for_their_owner_alone_and_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "deep" / "cluster"
    assert main(["certificates", str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"cluster": 0o700, "cert.pem": 0o600, "key.pem": 0o600}
    key = (folder / "key.pem").read_text()
    assert main(["certificates", str(folder)]) == 1
    assert "has a cert.pem already" in capsys.readouterr().err
    assert (folder / "key.pem").read_text() == key
    (folder / "key.pem").unlink()
    with pytest.raises(SettingError, match=r"security=.* has no key\.pem: python -m labkit certificates"):
        security_in(folder)


def test_a_local_lab_takes_certificates_from_a_folder(tmp_path: Path) -> None:
    folder = write_certificates(tmp_path / "cluster")
    from labkit.cluster.local import open_local
    from labkit.cluster.workers import WorkerRequest

    with open_local(WorkerRequest.of(1, None, None, folder, 10.0)) as lab:
        assert lab.map(abs, [-1]).result() == [1]
        with lk.connect(lab.client.scheduler.address, security=str(folder)) as guest:
            assert guest.map(abs, [-2]).result() == [2]


def test_what_the_lesson_says_to_install_is_there_to_install() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r'pip install "labkit\[(\w+)\]"', WORDS)
    assert named == ["gpu", "ssh", "classroom"] and set(named) <= set(extras)
    assert any(line.startswith("dask-cuda") for line in extras["gpu"])
    assert any(line.startswith("dask-gateway>") for line in extras["classroom"])
