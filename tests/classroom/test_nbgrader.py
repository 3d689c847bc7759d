"""nbgrader's own cycle over the exercises: assignments are made, submissions graded, and feedback is written.

nbgrader has its place in an environment of its own (`pipx install nbgrader`, or `pip install "labkit[nbgrader]"`); its
kernels are of the Python that runs this test. Of a lesson there is what its exercises need: the rest is run by nbval.
"""

from __future__ import annotations

import builtins
import json
import os
import re
import shutil
import subprocess
import symtable
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from labkit.classroom import configuration
from tests.check.test_check import WRONG
from tests.classroom.test_grading import HALF

ROOT = Path(__file__).parents[2]
LESSONS = sorted(path for path in (ROOT / "notebooks").glob("*.ipynb") if '"nbgrader"' in path.read_text())
SHORT = ("02", "15")  # with partial credit, and three answers; no lab is started for them
SCORES = """
import json, sys
from nbgrader.api import Gradebook
with Gradebook("sqlite:///gradebook.db") as book:
    print(json.dumps([[it.student.id, it.assignment.name, [[g.name, g.auto_score, g.max_score] for n in it.notebooks
                       for g in n.grades]] for a in book.assignments for it in a.submissions]))
"""
pytestmark = [pytest.mark.alone, pytest.mark.slow]


@pytest.fixture(scope="module")
def nbgrader() -> Path:
    """The command, which may be of another environment than this one."""
    beside = shutil.which("nbgrader", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("nbgrader")
    if found is None:
        pytest.skip("nbgrader is not installed: pipx install nbgrader, which brings classic Jupyter along")
    return Path(found)


def of_grader(cell: NotebookNode) -> dict[str, object]:
    return dict(cell.metadata.get("nbgrader", {}))


def names_of(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell binds, and those of other cells that it uses, its functions included."""
    top = symtable.symtable(source, "cell", "exec")
    bound = {it.get_name() for it in top.get_symbols() if it.is_assigned() or it.is_imported() or it.is_namespace()}
    used, tables = set[str](), [top]
    while tables:
        table = tables.pop()
        used |= {it.get_name() for it in table.get_symbols() if it.is_referenced() and (it.is_global() or table is top)}
        tables += table.get_children()
    return bound, used


def exercises(path: Path) -> NotebookNode:
    """A lesson's exercises, and what they need of the cells before them."""
    lesson = nbformat.read(path, as_version=4)
    needed, kept = set[str](), []
    for cell in reversed(lesson.cells):
        if cell.cell_type != "code":
            continue
        bound, used = names_of(cell.source)
        if of_grader(cell) or bound & needed:
            needed = (needed - bound) | (used - set(dir(builtins)))
            cell.outputs, cell.execution_count = [], None
            kept.insert(0, cell)
    lesson.cells = kept
    return lesson


def wrong(notebook: NotebookNode) -> NotebookNode:
    """Answered plausibly, and wrong: as the tests of the checks have it, or else by a number that does not fit."""
    checks = [cell.source for cell in notebook.cells if of_grader(cell).get("grade")]
    for cell in (it for it in notebook.cells if of_grader(it).get("solution")):
        answers = re.findall(r"^(?:def|class)\s+(\w+)|^(\w+)\s*=", cell.source, flags=re.MULTILINE)
        lines = ["from tests.check.test_check import WRONG"]
        for name in (function or assigned for function, assigned in answers):
            asked = [re.search(rf"lk\.check\.(\w+)\({name}\b", it) for it in checks]
            exercise = next((it[1] for it in asked if it), "")
            if exercise == "split":
                lines.append(HALF)
            elif any(it[0] == exercise for it in WRONG):
                lines.append(f"{name} = next(fn for exercise, fn, _ in WRONG if exercise == {exercise!r})")
            else:
                lines.append(f"{name} = lambda *given, **settings: 0")
        cell.source = "\n".join(lines)
    return notebook


class Course:
    """A course of lessons in a folder, as `python -m labkit classroom init` configures it."""

    def __init__(self, folder: Path, command: Path, lessons: list[Path]) -> None:
        self.folder, self.command, self.lessons = folder, command.resolve(), lessons
        configuration.write(folder)
        kernel = folder / "jupyter" / "kernels" / "python3"
        kernel.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "labkit", "language": "python"}))
        for path in lessons:
            self.write("source", path, exercises(path))

    def write(self, where: str, path: Path, notebook: NotebookNode) -> None:
        (self.folder / where / path.stem).mkdir(parents=True)
        nbformat.write(notebook, self.folder / where / path.stem / path.name)

    def run(self, *words: str) -> None:
        found = subprocess.run([self.command, *words], cwd=self.folder, env=self.environment, text=True,
                               capture_output=True, timeout=1800, check=False)  # fmt: skip
        assert found.returncode == 0, found.stderr[-2000:]

    @property
    def environment(self) -> dict[str, str]:
        # nbgrader calls alembic, which lies beside it
        home = {"PATH": os.pathsep.join([str(self.command.parent), os.environ["PATH"]])}
        home |= {"HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder / "data")}  # predictions are not the user's
        return os.environ | home | {"JUPYTER_PATH": str(self.folder / "jupyter"), "PYTHONPATH": str(ROOT)}

    def grade(self) -> dict[tuple[str, str], list[tuple[str, float, float]]]:
        """Points of each exercise, and how many there are, by student and lesson."""
        for path in self.lessons:
            self.run("generate_assignment", path.stem)
            for student, notebook in self.submissions(path).items():
                self.write(f"submitted/{student}", path, notebook)
            self.run("autograde", path.stem)
            self.run("generate_feedback", path.stem)
        python = self.command.with_name("python")
        told = subprocess.run([python, "-c", SCORES], cwd=self.folder, text=True, capture_output=True, check=True,
                              timeout=120)  # fmt: skip
        return {(student, lesson): [tuple(it) for it in grades] for student, lesson, grades in json.loads(told.stdout)}

    def submissions(self, path: Path) -> dict[str, NotebookNode]:
        """What nbgrader released, handed in as it is, with the solutions, and with wrong answers."""
        released = self.folder / "release" / path.stem / path.name
        blank, solved, guessed = (nbformat.read(released, as_version=4) for _ in range(3))
        answers = {
            of_grader(it)["grade_id"]: it.source for it in exercises(path).cells if of_grader(it).get("solution")
        }
        for cell in solved.cells:
            if of_grader(cell).get("solution"):
                cell.source = answers[of_grader(cell)["grade_id"]]
        return {"blank": blank, "solved": solved, "wrong": wrong(guessed)}


def cycle(folder: Path, command: Path, lessons: list[Path]) -> dict[str, list[float]]:
    """Grade lessons, each handed in solved, wrong and blank; what each got in all, in this order, by lesson."""
    begun, course = time.perf_counter(), Course(folder, command, lessons)
    grades = course.grade()
    faults, table = [], {}
    for path in lessons:
        released = (folder / "release" / path.stem / path.name).read_text()
        assert "BEGIN SOLUTION" not in released and "# Your answer here" in released
        table[path.stem] = [sum(got for _, got, _ in grades[who, path.stem]) for who in ("solved", "wrong", "blank")]
        print(f"{path.stem:24} solved, wrong, blank: {table[path.stem]}")
        each = list(zip(*(grades[who, path.stem] for who in ("blank", "solved", "wrong")), strict=True))
        for (name, blank, of), (_, solved, _), (_, guessed, _) in each:
            if not (solved == of and blank == 0 and guessed < of):
                faults.append(f"{path.stem} {name}: solved {solved}, blank {blank}, wrong {guessed} of {of}")
        for who in ("blank", "solved", "wrong"):
            page = folder / "feedback" / who / path.stem / f"{path.stem}.html"
            assert "Score:" in page.read_text()
    print(f"{len(lessons)} lessons, three submissions each: {(time.perf_counter() - begun) / 60:.1f} min")
    assert faults == []
    return table


@pytest.mark.timeout(900)
def test_nbgrader_gives_a_solved_lesson_all_points_and_a_blank_or_wrong_one_fewer(
    nbgrader: Path, tmp_path: Path
) -> None:
    table = cycle(tmp_path, nbgrader, [path for path in LESSONS if path.stem.startswith(SHORT)])
    assert table == {
        "02_splitting": [3, 2, 0],
        "15_optimisation": [4, 0, 0],
    }


@pytest.mark.claims
@pytest.mark.timeout(7200)
def test_nbgrader_s_cycle_over_all_lessons(nbgrader: Path, tmp_path: Path) -> None:
    cycle(tmp_path, nbgrader, LESSONS)
