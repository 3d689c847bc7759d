"""The written configuration serves: a real hub, a student with a server, the lessons, code that runs, the board."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from labkit.classroom.configuration import write
from tests.classroom.hubs import Hub, init, running_hub, wait

pytestmark = pytest.mark.paired
MOST_LINES = 65  # of a file that a teacher reads: a screen, comments included


def test_init_writes_what_a_teacher_can_read_and_replaces_nothing(tmp_path: Path) -> None:
    first, second = init(tmp_path / "class"), init(tmp_path / "class")
    assert first.returncode == 0, first.stderr
    assert second.returncode == 1 and "already" in second.stderr
    for name in ("jupyterhub_config.py", "nbgrader_config.py", "dask_gateway_config.py"):
        text = (tmp_path / "class" / name).read_text()
        compile(text, name, "exec")
        assert len(text.splitlines()) <= MOST_LINES
    assert (tmp_path / "class" / "hub" / "gateway_key").stat().st_mode & 0o777 == 0o600
    lessons = sorted((tmp_path / "class" / "course").glob("*.ipynb"))
    assert lessons and not any("BEGIN SOLUTION" in it.read_text() for it in lessons)
    command = [sys.executable, "-m", "labkit", "classroom", "release", str(tmp_path / "class")]
    assert subprocess.run(command, capture_output=True).returncode == 0  # again: what has not changed is no commit
    log = subprocess.run(["git", "-C", lessons[0].parent, "log", "--oneline"], capture_output=True, text=True).stdout
    assert len(log.splitlines()) == 1


def test_nobody_is_let_in_or_made_admin_unless_the_teacher_says_so(tmp_path: Path) -> None:
    """At GitHub anybody has an account, and may have called it "teacher"."""
    for authenticator, everybody in (("pam", True), ("dummy", True), ("native", False), ("github", False)):
        folder = tmp_path / authenticator
        written = write(folder, authenticator)[0].read_text()
        lines = [it.partition("#")[0] for it in written.splitlines()]
        assert any("allow_all" in it for it in lines) is everybody
        assert "allowed_users" in written or everybody
        assert "c.Authenticator.admin_users = set()" in "\n".join(lines) and "@" not in written
        assert all("HERE" not in it or "hub" in it for it in lines if "sqlite" in it or "secret" in it)
        assert (folder / "hub").stat().st_mode & 0o777 == 0o700


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    pytest.importorskip("jupyterhub", reason='jupyterhub is not installed: pip install "labkit[classroom]"')
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


def test_a_student_gets_a_server_with_the_limits_and_runs_code_and_the_board_knows_them(hub: Hub) -> None:
    hub.serve("ada")
    student = hub.ask("/hub/api/users/ada/tokens", "POST", data={"note": "tests"})[1]["token"]
    # who holds a student's token sees the board, and a stranger does not
    assert hub.ask("/services/board/state", token=student) == (200, {"questions": [], "passed": {}, "lessons": {}})
    assert hub.ask("/services/board/state", token="no" * 16)[0] == 403
    if find_spec("nbgitpuller"):
        pull = f"/user/ada/git-pull/api?repo=file://{hub.home}/course&branch=main&targetpath=course"
        assert "finished" in hub.ask(pull)[1]
        pulled = hub.home / "homes" / "ada" / "course" / "00_start_here.ipynb"
        assert "Your answer here" in pulled.read_text()
    kernel = hub.kernel("ada")
    code = (
        "import os, labkit as lk\n"
        "lk.predict('How many?', low=1, high=9).lock(4)\n"
        "print(os.environ['MEM_LIMIT'], os.environ['CPU_LIMIT'], os.environ['GOMP_SPINCOUNT'])"
    )
    assert hub.run(kernel, code).split() == [str(2 << 30), "2.0", "1000"]
    wait(lambda: hub.ask("/services/board/state", token=student)[1]["questions"], 60)
    (shown,) = hub.ask("/services/board/state", token=student)[1]["questions"]
    assert shown == {"question": "How many?", "voters": 1, "bars": [], "unit": ""}
    # the class as a cluster: an admin invites, and a student's kernel trains under the name that the hub gives it
    teacher = hub.ask("/hub/api/users/grace/tokens", "POST", data={"note": "tests"})[1]["token"]
    invite, watch = "/services/board/federation/invite", "/services/board/federation/state"
    assert hub.ask(invite, "POST", student, {"clients": 1})[0] == 403
    assert hub.ask(invite, "POST", teacher, {"clients": 1, "rounds": 3})[0] == 200
    code = "import labkit as lk\nprint(lk.join(name='grace').result(120).final.round)"
    assert hub.run(kernel, code).split() == ["3"]
    (client,) = hub.ask(watch, token=teacher)[1]["training"]["clients"]
    assert (client["name"], client["rounds"]) == ("ada", 3)
    assert "name" not in hub.ask(watch, token=student)[1]["training"]["clients"][0]
    # a cluster of one's own, at the Gateway, which knows students by the hub's tokens; nobody else has any
    code = (
        "import labkit as lk, os\nwith lk.connect('gateway', workers=1) as lab:\n"
        "    print(lab.map(abs, [-8]).result(), lab.launch(abs, -9, ranks=1).result())\n"
        "print(os.environ['DASK_GATEWAY__ADDRESS'])"
    )
    *said, place = hub.run(kernel, code).split()
    assert said == ["[8]", "[9]"]
    seeing = {"note": "tests", "scopes": ["read:users:name!user"]}
    bare = hub.ask("/hub/api/users/ada/tokens", "POST", data=seeing)[1]["token"]
    # 500 is dask-gateway's word for a token that the hub does not know
    assert [clusters(place, token) for token in (student, bare, "no" * 16)] == [200, 401, 500]


def clusters(place: str, token: str) -> int:
    """The status with which the Gateway answers who asks for their clusters."""
    try:
        with urlopen(Request(f"{place}/api/v1/clusters/", headers={"Authorization": f"jupyterhub {token}"})) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code
