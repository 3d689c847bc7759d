"""From a fresh clone to a first lesson, as a person does it: `make lab`, and again (`.ci/run` does `make check`)."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests import jupyter
from tests.system import absent, needs
from tests.test_repository import ROOT, files

INSTALL = 900.0  # seconds that an installation may take
AGAIN = 20.0  # seconds in which the second start has to be there
START = "/lab/tree/00_start_here.ipynb"

pytestmark = [pytest.mark.paired, pytest.mark.long, pytest.mark.timeout(INSTALL + 300)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory):
    """A folder with what is, or is about to be, committed, and nothing else; gone again afterwards (it takes 2 GB)."""
    folder = tmp_path_factory.mktemp("clone") / "labkit"
    for path in files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    subprocess.run([needs("git"), "init", "--quiet"], cwd=folder, check=True)
    yield folder
    threading.Thread(target=shutil.rmtree, args=[folder]).start()  # a minute and more, beside the next tests


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """pip reaches an index, or a folder, that has the tool which builds labkit."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    tried = subprocess.run(
        [*pip, str(tmp_path_factory.mktemp("pip")), "hatchling"], capture_output=True, text=True, timeout=120
    )
    if tried.returncode:
        absent(f"pip reaches no package index: {tried.stderr.strip().splitlines()[-1]}")


def _make(clone: Path, *arguments: str) -> list[str]:
    python = sys._base_executable  # type: ignore[attr-defined]  # the one that this environment was made with
    return [needs("make"), "-C", str(clone), f"PYTHON={python}", *arguments]


def _listening(process: psutil.Process) -> set[str]:
    """The addresses at which a process listens; none where it has ended since it was found."""
    try:
        return {it.laddr.ip for it in process.net_connections() if it.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:
        return set()


def _lab(clone: Path, home: Path, timeout: float) -> float:
    """Start `make lab`, look at it from outside, end it; seconds until it gave its address."""
    port = _free_port()
    home.mkdir()
    command = _make(clone, "lab", f"PORT={port}", "BROWSER=none")
    with jupyter.serve(command, home, timeout) as server:
        assert f":{port}{START}?token=" in server.address
        assert server.ask("/api/sessions")[0] == 403, "the server let somebody in who has no token"
        assert server.ask("/api/contents/00_start_here.ipynb", server.token)[0] == 200
        assert server.ask("/api/kernels", server.token, method="POST")[0] == 201
        family = server.family()
        heard = set().union(*map(_listening, family))
        assert heard == {"127.0.0.1"}, "it can be reached from other machines"
        assert len(family) >= 3  # make, the server, a kernel
    _, left = psutil.wait_procs(family, timeout=10)
    assert left == []
    return server.seconds


def test_make_lab_installs_and_serves_the_first_lesson(clone: Path, index: None, tmp_path: Path) -> None:
    seconds = _lab(clone, tmp_path / "first", INSTALL)
    print(f"`make lab` on a fresh clone: {seconds:.0f} s")
    where = "import labkit; print(labkit.__file__)"
    python = clone / ".venv" / "bin" / "python"
    done = subprocess.run([python, "-c", where], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to(clone)
    subprocess.run([python, "-m", "pip", "check"], check=True)


def test_the_second_start_installs_nothing(clone: Path, tmp_path: Path) -> None:
    if not (clone / ".venv" / "ready").exists():
        pytest.skip("there was no first start in this session")
    seconds = _lab(clone, tmp_path / "second", AGAIN)
    print(f"`make lab` again: {seconds:.1f} s")


def test_a_port_in_use_is_said_and_not_replaced(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "labkit", "lab", "--browser", "none", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode != 0
    assert f"port {port} is not available" in done.stderr


def test_a_wheel_has_the_lessons_and_lab_opens_a_copy_that_may_be_changed(
    clone: Path, index: None, tmp_path: Path
) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(clone)]
    subprocess.run(pip, check=True, timeout=300)
    (wheel,) = tmp_path.glob("labkit-*.whl")
    shutil.unpack_archive(wheel, installed := tmp_path / "installed", format="zip")
    names = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.name for path in (installed / "labkit" / "notebooks").glob("*.ipynb")} == names
    (home := tmp_path / "home").mkdir()
    opened = "from labkit import __main__ as it; print(it.own_copy(it.START).resolve())"
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", opened], cwd=home, env={"PYTHONPATH": str(installed)}, text=True, capture_output=True
        )
        lesson = home / "labkit-lessons" / "00_start_here.ipynb"
        assert done.stdout.splitlines()[-1:] == [str(lesson)], done.stderr
        assert {path.name for path in lesson.parent.glob("*.ipynb")} >= names
        lesson.with_name("mine.ipynb").touch()  # the second time it is what it was
    assert (home / "labkit-lessons" / "mine.ipynb").exists()
