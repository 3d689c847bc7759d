"""Honest grading: ten kinds of submission get the points that they deserve, and none costs other exercises theirs."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import psutil
import pytest

from labkit.classroom import grading, isolation
from labkit.classroom.grading import grade
from labkit.errors import SettingError

pytestmark = pytest.mark.paired  # grading starts two processes for each exercise

LESSON = Path(__file__).parents[2] / "notebooks" / "02_splitting.ipynb"
OTHER = "lpt"
RIGHT = """
def my_split(n, parts):
    size, rest = divmod(n, parts)
    cuts = [part * size + min(part, rest) for part in range(parts + 1)]
    return [list(range(cuts[part], cuts[part + 1])) for part in range(parts)]
"""
HALF = "def my_split(n, parts):\n    return [list(range(n))[part::parts] for part in range(parts)]\n"
BROKEN = {
    "blank": "def my_split(n, parts):\n    ...\n",
    "wrong": "def my_split(n, parts):\n    return [[0]] * parts\n",
    "endless": "def my_split(n, parts):\n    while True:\n        pass\n",
    "kills": "import os, signal\ndef my_split(n, parts):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
    "exits": "import sys\ndef my_split(n, parts):\n    sys.exit(0)\n",
    "exits at once": "import os\nos._exit(0)\n",
    "replaces": (
        "import labkit as lk, labkit.check.answers as answers\n"
        "lk.check.split = lambda fn, **_: answers.Passed('split', 'all right', 3)\n"
        "answers.near = lambda *_: True\n"
        "def my_split(n, parts):\n    return [[]] * parts\n"
    ),
    "catches": (
        "def my_split(n, parts):\n    try:\n        return 1 / 0\n    except BaseException:\n        return my_split\n"
    ),
    "reads frames": (
        "import sys, gc\ndef my_split(n, parts):\n    frame = sys._getframe()\n    while frame:\n"
        "        for value in list(frame.f_locals.values()):\n"
        "            if isinstance(value, list) and len(value) == parts: return value\n        frame = frame.f_back\n"
        "    return [it for it in gc.get_objects() if type(it).__name__ in ('Part', 'Passed')] or 'nothing found'\n"
    ),
    "memory": "kept = []\ndef my_split(n, parts):\n    while True:\n        kept.append(bytearray(1 << 28))\n",
    "half a line": (
        "import os, time\ndef my_split(n, parts):\n    for fd in range(3, 20):\n"
        "        try: os.write(fd, b'{')\n        except OSError: pass\n    time.sleep(600)\n"
    ),
    "forges": (
        'import os, json, sys\nfor fd in range(3, 20):\n    try: os.write(fd, b\'{"points": 3, "of": 3}\\n\')\n'
        "    except OSError: pass\ndef my_split(n, parts):\n    return 'x'\n"
    ),
}


def submit(folder: Path, student: str, answer: str, lesson: Path) -> None:
    """A copy of a lesson in which `my_split` is answered so, and all else right."""
    notebook = nbformat.read(lesson, as_version=4)
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade_id") == "split":
            cell.source = answer
    (folder / student).mkdir(parents=True)
    nbformat.write(notebook, folder / student / lesson.name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lesson of one exercise."""
    folder = tmp_path_factory.mktemp("alone")
    nbformat.write(nbformat.read(LESSON, as_version=4), folder / LESSON.name)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lesson of two exercises, of which the second does not depend on the first."""
    notebook = nbformat.read(LESSON, as_version=4)
    scheduling = nbformat.read(LESSON.with_name("03_scheduling.ipynb"), as_version=4)
    for cell in scheduling.cells:
        if cell.metadata.get("nbgrader", {}).get("grade_id", "").startswith(OTHER):
            cell.id = f"x-{cell.id}"
            notebook.cells.append(cell)
    folder = tmp_path_factory.mktemp("source")
    nbformat.write(notebook, folder / LESSON.name)
    return folder


SAME = {  # as in the notebook
    "one by one": RIGHT.replace("return [", "yield from ["),
    "a deque": "from collections import deque\n" + RIGHT.replace("return [", "return deque([").rstrip() + ")\n",
}


@pytest.fixture(scope="module")
def grades(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[float | None, str]]:
    folder = tmp_path_factory.mktemp("submitted")
    for student, answer in {**BROKEN, **SAME, "solved": RIGHT, "half": HALF}.items():
        submit(folder, student, answer, source / LESSON.name)
    for student in ("torn", "renamed", "absent"):
        (folder / student).mkdir()
    (folder / "torn" / LESSON.name).write_text("{ no notebook")
    (folder / "renamed" / f"{LESSON.stem} (1).ipynb").write_text("{}")
    found = grade(folder, source)
    return {(it.student, it.exercise): (it.points, it.said) for it in found}


@pytest.mark.parametrize("student", [*BROKEN, "torn"])
def test_what_is_not_solved_gets_nothing(grades: dict[tuple[str, str], tuple[float, str]], student: str) -> None:
    points, said = grades[student, "split_check"]
    assert points == 0, said


def test_solved_gets_all_and_half_a_part(grades: dict[tuple[str, str], tuple[float, str]]) -> None:
    for student in ("solved", *SAME):
        assert grades[student, "split_check"][0] == 3, grades
    points, said = grades["half", "split_check"]
    assert points is not None and 0 < points < 3, said


@pytest.mark.parametrize("student", [*BROKEN, "solved", "half"])
def test_no_submission_costs_other_exercises_theirs(
    grades: dict[tuple[str, str], tuple[float, str]], student: str
) -> None:
    points, said = grades[student, f"{OTHER}_check"]
    assert points == 2, said


def test_nobody_is_left_out_without_a_word(grades: dict[tuple[str, str], tuple[float | None, str]]) -> None:
    points, said = grades["renamed", ""]
    assert points is None and f"renamed/{LESSON.stem} (1).ipynb is named like no lesson" in said
    assert grades["absent", ""] == (None, "Not graded: no notebook was handed in.")


def test_an_answer_that_changes_its_inputs_is_seen_to_do_so(tmp_path: Path) -> None:
    lesson = LESSON.with_name("07_data_parallel.ipynb")
    notebook = nbformat.read(lesson, as_version=4)
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade_id") == "mean_gradient":
            cell.source = (
                "def mean_gradient(gradients, sizes):\n    for g, n in zip(gradients, sizes): g *= n\n"
                "    return sum(gradients) / sum(sizes)\n"
            )
    (tmp_path / "in" / "ada").mkdir(parents=True)
    nbformat.write(notebook, tmp_path / "in" / "ada" / lesson.name)
    found = {it.exercise: it for it in grade(tmp_path / "in", lesson.parent)}
    assert "a changed input" in found["mean_gradient_check"].said, found


@pytest.mark.parametrize("option", [{"seed": -1}, {"jobs": 0}, {"jobs": -1}])
def test_odd_numbers_are_refused(alone: Path, tmp_path: Path, option: dict[str, int]) -> None:
    submit(tmp_path / "in", "ada", RIGHT, alone / LESSON.name)
    with pytest.raises(SettingError, match=r"seed is -1|jobs is (0|-1)"):
        grade(tmp_path / "in", alone, **option)


def test_each_is_told_why(grades: dict[tuple[str, str], tuple[float, str]]) -> None:
    said = {student: grades[student, "split_check"][1] for student in BROKEN}
    assert "has not ended after 8 s" in said["endless"]
    assert "has not ended after 8 s" in said["half a line"]
    assert "ended the process" in said["kills"] and "ended the process" in said["exits at once"]
    assert "called exit" in said["exits"]
    assert "gave None" in said["blank"]
    assert "MemoryError" in said["memory"]
    assert "function cannot be handed to the checker" in said["catches"]


@pytest.mark.skipif(bool(isolation.missing()), reason="this system lets nobody make namespaces")
def test_an_answer_has_no_network_no_other_process_no_lessons_and_no_tokens(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_SPIED", "as a hub's token is")
    spy = (
        "import os, socket\ndef my_split(n, parts):\n    found = []\n"
        "    try: socket.create_connection(('127.0.0.1', PORT), 1); found.append('network')\n    except OSError: pass\n"
        f"    if os.path.exists({str(alone / LESSON.name)!r}): found.append('lesson')\n"
        "    if len([it for it in os.listdir('/proc') if it.isdigit()]) > 4: found.append('processes')\n"
        "    if 'LABKIT_SPIED' in os.environ: found.append('variables')\n"
        "    raise RuntimeError(str(found))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        submit(tmp_path / "in", "spy", spy.replace("PORT", str(server.getsockname()[1])), alone / LESSON.name)
        found = {it.exercise: it.said for it in grade(tmp_path / "in", alone)}
    assert "RuntimeError: []" in found["split_check"]


@pytest.mark.skipif(bool(isolation.missing()), reason="this system lets nobody make namespaces")
def test_an_answer_sees_nothing_of_the_teachers_beside_python_labkit_and_torch(alone: Path, tmp_path: Path) -> None:
    """Not in a home or a folder in which these lie either, and no key of the system's."""
    home = Path.home() / f"labkit-secret-{os.getpid()}"
    beside = Path(isolation.__file__).parents[2] / "tests" / "conftest.py"
    looked_for = [str(it) for it in (home, beside, tmp_path, "/srv", "/var/log")]
    spy = (
        "import os, pathlib, sys\ndef my_split(n, parts):\n"
        f"    found = [it for it in {looked_for!r} if os.path.isfile(it) or os.path.isdir(it) and os.listdir(it)]\n"
        "    shadow = pathlib.Path('/etc/shadow')\n"
        "    try: found += [str(shadow)] * bool(shadow.read_bytes())\n    except OSError: pass\n"
        "    raise RuntimeError(str(found))\n"
    )
    submit(tmp_path / "in", "spy", spy, alone / LESSON.name)
    home.write_text("mine")
    try:
        found = {it.exercise: it.said for it in grade(tmp_path / "in", alone)}
    finally:
        home.unlink()
    assert beside.is_file()
    assert "RuntimeError: []" in found["split_check"]


@pytest.mark.skipif(bool(isolation.missing()), reason="this system lets nobody make namespaces")
def test_an_answer_changes_nothing_but_its_own_folder(alone: Path, tmp_path: Path) -> None:
    """Not the checker that grades the next one, no mount, no device; and it reaches no program that listens."""
    here = Path(__file__).parent / "left-by-an-answer"
    listening = Path(tempfile.gettempdir()) / f"labkit-listens-{os.getpid()}"
    intruder = (
        "import os, pathlib, resource, socket, subprocess, tempfile\n"
        "import labkit.check.answers as checker\n"
        "def my_split(n, parts):\n    done = []\n"
        "    def tried(what, does):\n"
        "        try: does(); done.append(what)\n        except (OSError, subprocess.CalledProcessError): pass\n"
        "    def run(*command): subprocess.run(command, check=True, capture_output=True)\n"
        "    def power():\n"
        "        mine = pathlib.Path('/proc/self/status').read_text().split('CapEff:')[1].split()[0]\n"
        "        if not int(mine, 16): raise OSError\n"
        "    tried('the checker', lambda: open(checker.__file__, 'ab').close())\n"
        f"    tried('a file', lambda: open({str(here)!r}, 'w'))\n"
        "    tried('the kernel', lambda: open('/proc/sys/kernel/hostname', 'r+'))\n"
        "    tried('unmounted', lambda: run('umount', '/tmp'))\n"
        "    tried('mounted', lambda: run('mount', '-o', 'remount,bind,rw', '/'))\n"
        f"    tried('nested', lambda: run('unshare', '-Urm', 'touch', {str(here)!r}))\n"
        f"    tried('socket', lambda: socket.socket(socket.AF_UNIX).connect({str(listening)!r}))\n"
        "    tried('powers', power)\n"
        "    devices = {'null', 'zero', 'full', 'random', 'urandom', 'shm'}\n"
        "    done += sorted(set(os.listdir('/dev')) - devices)\n"
        "    tempfile.TemporaryFile()\n"
        "    if resource.getrlimit(resource.RLIMIT_NPROC)[1] > 1024: done.append('processes')\n"
        "    raise RuntimeError(str(done))\n"
    )
    submit(tmp_path / "in", "intruder", intruder, alone / LESSON.name)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listening))
        server.listen()
        try:
            found = {it.exercise: it.said for it in grade(tmp_path / "in", alone)}
        finally:
            listening.unlink()
    assert "RuntimeError: []" in found["split_check"]
    assert not here.exists()


def _half(source: Path, folder: Path) -> grading.Grade:
    """What half an answer gets."""
    submit(folder, "ada", HALF, source / LESSON.name)
    return next(it for it in grade(folder, source) if it.exercise == "split_check")


def test_the_graders_own_faults_are_nobodys_points(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that breaks, and an answer's process that does not come up, since it cannot be shut in, say."""
    broken = tmp_path / "broken"
    broken.mkdir()
    text = (alone / LESSON.name).read_text()
    assert text.count("lk.check.split(my_split)") == 1
    (broken / LESSON.name).write_text(text.replace("lk.check.split(my_split)", "lk.check.split(my_split, oops=1)"))
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")  # which lets half an answer through, for another counts then
    got = _half(broken, tmp_path / "first")
    assert got.points is None and "Not graded" in got.said and "oops" in got.said
    found = _half(alone, tmp_path / "second").points
    assert found is not None and 0 < found < 3
    monkeypatch.setattr(grading, "MEMORY", 1 << 63)  # no limit that a process could set
    got = _half(alone, tmp_path / "third")
    assert got.points is None and "process for the answer does not start" in got.said
    monkeypatch.undo()
    monkeypatch.setattr(isolation, "_how", lambda: (("false",), True))  # what worked at first, and does no more
    got = _half(alone, tmp_path / "fourth")
    assert got.points is None and "process for the answer does not start" in got.said


def test_a_check_that_takes_too_long_ends_with_its_answer(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "_ALL_TOGETHER", 5.0)
    monkeypatch.setattr(grading, "CPU", 117)  # which tells its processes from those of other tests
    submit(tmp_path / "in", "endless", BROKEN["endless"], alone / LESSON.name)
    found = {it.exercise: it.said for it in grade(tmp_path / "in", alone)}
    assert "as a whole took more than 5 s" in found["split_check"]
    mine = f"labkit.classroom.answering {grading.CPU} {grading.MEMORY}"
    left = [it.pid for it in psutil.process_iter(["cmdline"]) if mine in " ".join(it.info["cmdline"] or ())]
    assert not left


def test_one_notebook_counts_once_and_links_not_at_all(source: Path, tmp_path: Path) -> None:
    """Of two notebooks of a lesson nobody but the student can choose; a link would hand in the neighbour's."""
    folder = tmp_path / "in"
    submit(folder, "ada", RIGHT, source / LESSON.name)
    (folder / "ada" / "old").mkdir()
    (folder / "ada" / "old" / LESSON.name).write_text((source / LESSON.name).read_text())
    submit(tmp_path / "elsewhere", "emmy", RIGHT, source / LESSON.name)
    (folder / "grace").mkdir()
    (folder / "grace" / LESSON.name).symlink_to(tmp_path / "elsewhere" / "emmy" / LESSON.name)
    found = grade(folder, source)
    assert [(it.student, it.exercise, it.points) for it in found] == [
        (student, exercise, None) for student in ("ada", "grace") for exercise in ("split_check", f"{OTHER}_check")
    ]
    assert f"2 notebooks of one lesson, ada/{LESSON.name}, ada/old/{LESSON.name}" in found[0].said
    assert "link" in found[2].said


def test_lines_for_ipython_cost_nothing_and_lines_that_only_look_like_them_stay(alone: Path, tmp_path: Path) -> None:
    magic = f"%matplotlib inline\nif True:\n    %time\n!ls\n{RIGHT}"
    continued = RIGHT.replace("part + 1])", "part\n        % (parts + 1) + 1])")
    assert continued != RIGHT
    submit(tmp_path / "in", "ada", magic, alone / LESSON.name)
    submit(tmp_path / "in", "grace", continued, alone / LESSON.name)
    found = {(it.student, it.points, it.said) for it in grade(tmp_path / "in", alone) if it.exercise == "split_check"}
    assert {(student, points) for student, points, _ in found} == {("ada", 3.0), ("grace", 3.0)}, found


def test_where_files_cannot_be_made_read_only_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_how", lambda: (("unshare",), False))
    assert "can change the files" in isolation.missing()


def test_the_command_writes_a_table_and_the_seed_makes_it_the_same(source: Path, tmp_path: Path) -> None:
    submit(tmp_path / "in", "ada", HALF, source / LESSON.name)
    to = tmp_path / "grades.csv"
    command = [sys.executable, "-m", "labkit", "grade", str(tmp_path / "in"), "--source", str(source), "--seed", "7"]
    said = [
        subprocess.run([*command, "--to", str(to)], capture_output=True, text=True, check=True).stdout for _ in (1, 2)
    ]
    assert said[0] == said[1] and "ada" in said[0]
    rows = list(csv.DictReader(to.read_text().splitlines()))
    assert [row["exercise"] for row in rows] == ["split_check", f"{OTHER}_check"]
    assert rows[1]["points"] == "2.0"


def test_what_runs_on_workers_is_said_to_be_ungraded_and_all_other_solutions_pass(tmp_path: Path) -> None:
    lessons = LESSON.parent
    for path in sorted(lessons.glob("*.ipynb")):
        (tmp_path / "in" / "teacher").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "teacher" / path.name).write_text(path.read_text())
    found = grade(tmp_path / "in", lessons)
    assert len(found) > 15
    on_workers = {"adjoint_on_workers", "all_reduce", "choices", "gossip", "guarded", "pipeline_on_workers"}
    on_workers |= {"states_on_each", "traffic"}
    with_objects = {"defence", "suspects"}  # an attack, a data set
    ungraded = {f"{name}_check" for name in on_workers | with_objects}
    assert {it.exercise for it in found if it.points is None} <= ungraded
    assert [(it.exercise, it.said) for it in found if it.points is not None and it.points < it.of] == []
