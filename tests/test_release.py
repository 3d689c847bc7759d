"""The learner's copy: no solution, no result beforehand, nothing overwritten; and what graders read of an exercise."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import labkit as lk
from labkit.errors import CheckFailed, SettingError
from labkit.release import BEGIN, END, release, stripped, without_solutions
from tests.check.test_check import WRONG
from tests.check.wrong_puzzles import PUZZLES

FOLDER = Path(__file__).parents[1] / "notebooks"
LESSONS = sorted(FOLDER.glob("*.ipynb"))
# nbgrader's schema of a cell's metadata, version 3; it allows no other keys.
TYPES = {"schema_version": int, "grade": bool, "locked": bool, "solution": bool, "task": bool, "grade_id": str,
         "points": (int, float), "cell_type": str}  # fmt: skip
NEEDED = {"schema_version", "grade", "locked", "solution", "grade_id"}


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def exercises(path: Path) -> list[tuple[str, str]]:
    """Each answer of a lesson with the check that asks for the name it defines."""
    cells = code(read(path))
    answers = [it.source for it in cells if it.metadata.get("nbgrader", {}).get("solution")]
    checks = [it.source for it in cells if it.metadata.get("nbgrader", {}).get("grade")]
    found = []
    for answer in answers:
        names = re.findall(r"^(?:def|class)\s+(\w+)|^(\w+)\s*=", answer, flags=re.MULTILINE)
        asked = [it for it in checks for name in names if re.search(rf"\b{name[0] or name[1]}\b", it)]
        assert asked, f"{path.name}: nothing checks {names}"
        found.append((answer, asked[0]))
    return found


ALL = [(path, *pair) for path in LESSONS for pair in exercises(path)]
PURE = r"lk\.check\.\w+\(\w+(, \w+=[\w.]+)*\)"
# What trains on real workers is graded where the lesson itself is run, with nbval.
SLOW = [it for it in ALL if not re.fullmatch(PURE, it[2].strip())]
QUICK = [it for it in ALL if re.fullmatch(PURE, it[2].strip())]


def imported(source: str) -> dict[str, Any]:
    """What a cell's own import lines bring."""
    names: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), "imports", "exec"), names)
    return names


def run(path: Path, answer: str, check: str) -> Any:
    # As in the notebook, after its first cells and its other answers, which one may use.
    names: dict[str, Any] = {"lk": lk, "np": np, "costs": lk.costs}
    for cell in code(read(path)):
        names |= imported(cell.source)
    for other, _ in exercises(path):
        exec(other, names)
    exec(answer, names)
    return eval(check, names)


def test_most_exercises_are_tried_here() -> None:
    assert len(QUICK) >= 10 and len(QUICK) >= 0.6 * len(ALL)


@pytest.mark.parametrize(("path", "answer", "check"), QUICK, ids=[f"{it[0].stem[:2]}-{it[2]}" for it in QUICK])
def test_the_solution_passes_and_the_gap_does_not(path: Path, answer: str, check: str) -> None:
    assert repr(run(path, answer, check)).startswith("✓")
    with pytest.raises(CheckFailed) as caught:
        run(path, without_solutions(answer), check)
    assert caught.value.points == 0  # a blank hands out nothing


@pytest.mark.parametrize(("path", "answer", "check"), SLOW, ids=[f"{it[0].stem[:2]}-{it[1][:20]}" for it in SLOW])
def test_the_gap_of_an_exercise_on_real_workers_gets_no_points(path: Path, answer: str, check: str) -> None:
    """Where the blank itself does not end the cell, which then gives nothing, its check does; neither needs a lab."""
    names: dict[str, Any] = {"lk": lk, "lab": None, "common": {}}
    for source in [it.source for it in code(read(path))]:
        names |= imported(source)
    for other in [it for it, _ in exercises(path) if it != answer]:
        exec(other, names)
    exec(without_solutions(answer), names)
    with pytest.raises((CheckFailed, AttributeError)) as caught:
        exec(check, names)
    if isinstance(caught.value, CheckFailed):
        assert caught.value.points == 0
    else:
        assert re.match("'(NoneType|ellipsis)' object has no attribute", str(caught.value))


# Of the last one test_own_cluster.py has five, with clusters that somebody starts by hand.
ASKED = sorted({re.findall(r"lk\.check\.(\w+)\(", check)[-1] for _, _, check in ALL} - {"guarded"})


@pytest.mark.parametrize("exercise", ASKED)
def test_three_wrong_answers_to_each_exercise_are_told_three_different_hints(exercise: str) -> None:
    calls = [partial(getattr(lk.check, exercise), fn) for name, fn, _ in WRONG if name == exercise]
    hints = set()
    for call in calls or PUZZLES[exercise]:
        with pytest.raises(CheckFailed) as caught:
            call()
        assert caught.value.points < caught.value.of
        hints.add(str(caught.value).rpartition(": ")[2])
    assert len(hints) >= 3


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_copy_tells_no_solution_and_no_result(path: Path) -> None:
    lesson, copy = read(path), stripped(read(path))
    assert BEGIN not in nbformat.writes(copy) and END not in nbformat.writes(copy) and "widgets" not in copy.metadata
    assert [cell.source for cell in copy.cells if cell.cell_type == "markdown"] == [
        cell.source for cell in lesson.cells if cell.cell_type == "markdown"
    ]
    part = ""
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            part = ([part, *re.findall(r"^## +(.*)$", cell.source, flags=re.MULTILINE)])[-1]
        elif part not in ("Formula", "The code"):
            assert cell.outputs == [], f"{path.name} tells what {cell.source!r} gives"
    nbformat.validate(copy)
    assert read(path) == lesson  # the repository's copy stays as it was executed


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_graders_can_read_the_exercises(path: Path) -> None:
    """The metadata is valid by nbgrader's schema, version 3, and what a check gives is what its cell is worth."""
    for cell in code(read(path)):
        known = cell.metadata.get("nbgrader")
        if known is None:
            continue
        assert set(known) >= NEEDED and all(isinstance(value, TYPES[key]) for key, value in known.items())
        assert known["schema_version"] == 3 and re.fullmatch(r"[\w-]+", known["grade_id"])
        assert ("points" in known) == known["grade"] and known["grade"] != known["solution"]
        shown = "".join(str(output.get("data", {}).get("text/plain", "")) for output in cell.outputs)
        if parts := re.search(r"(\d+) of \1 points?", shown):
            assert known["points"] == int(parts[1]), f"{path.name}: {known['grade_id']} gives {parts[1]} points"


def test_a_gap_keeps_what_stands_around_it() -> None:
    source = f"def double(x):\n    y = x\n    {BEGIN}\n    z = 2\n    return z * y\n    {END}\n\n\nother = 3"
    assert without_solutions(source) == "def double(x):\n    y = x\n    # Your answer here\n    ...\n\n\nother = 3"
    assert without_solutions(f"{BEGIN}\nimport math\na = b = math.pi\n{END}") == "# Your answer here\na = ...\nb = ..."


def test_outputs_of_formulas_stay() -> None:
    shown = [new_output("execute_result", {"text/plain": "seen"})]
    cells = [new_markdown_cell("## Formula"), new_code_cell("1", outputs=shown),
             new_markdown_cell("## Experiment"), new_code_cell("2", outputs=shown)]  # fmt: skip
    copy = stripped(new_notebook(cells=cells))
    assert [bool(cell.outputs) for cell in code(copy)] == [True, False]


def test_nothing_of_a_learner_is_overwritten(tmp_path: Path) -> None:
    copies = release(FOLDER, tmp_path / "learner")
    assert [path.name for path in copies] == [path.name for path in LESSONS]
    with pytest.raises(SettingError, match="may hold answers"):
        release(FOLDER, tmp_path / "learner")
    with pytest.raises(SettingError, match="no lessons"):
        release(tmp_path, tmp_path / "other")


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "labkit", "release", str(tmp_path / "learner")]
    first, second = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0 and first.stdout.startswith(f"{len(LESSONS)} lessons for learners in")
    assert second.returncode == 1 and "may hold answers" in second.stderr
