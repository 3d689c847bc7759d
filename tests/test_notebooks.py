"""The lessons as they are saved, the rules they are held to, and a proof that nbval truly compares them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests import lessons as notebooks
from tests.lessons import BEGIN, END, PARTS, STATE, VIEW, execute, normalise, problems, save

FOLDER = Path(__file__).parents[1] / "notebooks"
LESSONS = sorted(FOLDER.glob("*.ipynb"))

ANSWER = f"""def double(x):
    {BEGIN}
    return 2 * x
    {END}
"""
SHOWN = """import ipywidgets
slider = ipywidgets.IntSlider(3)
slider"""


def _grader(name: str, **kind: object) -> dict[str, dict[str, object]]:
    common = {"schema_version": 3, "grade_id": name, "locked": False, "task": False, "cell_type": "code"}
    return {"nbgrader": common | {"solution": False, "grade": False, "points": 1} | kind}


def lesson() -> NotebookNode:
    """A lesson of a few cells that breaks no rule once it has been executed."""
    cells = [new_markdown_cell("# A lesson"), *(new_markdown_cell(f"## {part}") for part in PARTS)]
    answer = new_code_cell(ANSWER, metadata=_grader("double", solution=True))
    check = new_code_cell("# lk.check.double(double)\nprint(double(21))", metadata=_grader("check", grade=True))
    cells[-3:-3] = [new_code_cell("6 * 7 + 0.5"), new_code_cell(SHOWN), answer, check]
    return new_notebook(cells=cells)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That lesson, executed and saved."""
    path = tmp_path_factory.mktemp("lesson") / "99_lesson.ipynb"
    save(lesson(), path)
    save(execute(path), path)
    return path


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_lesson_is_saved_as_a_reader_should_meet_it(path: Path) -> None:
    assert problems(path) == []


def test_an_executed_lesson_breaks_no_rule(executed: Path) -> None:
    assert problems(executed) == []


def test_executing_again_changes_no_byte(executed: Path, tmp_path: Path) -> None:
    again = tmp_path / executed.name
    save(execute(executed), again)
    assert again.read_text() == executed.read_text()


def test_normalising_leaves_nothing_of_the_run(executed: Path) -> None:
    notebook = nbformat.read(executed, as_version=4)
    state = notebook.metadata.widgets[STATE].state
    assert sorted(state) == [f"{number:032x}" for number in range(len(state))]
    assert set(notebook.metadata) == {"kernelspec", "language_info", "widgets"}
    notebook.cells[0].metadata["trusted"] = True
    notebook.metadata.language_info["version"] = "3.11.7"
    assert nbformat.writes(normalise(notebook)) == executed.read_text().rstrip("\n")


def _code(notebook: NotebookNode, number: int) -> NotebookNode:
    return [cell for cell in notebook.cells if cell.cell_type == "code"][number]


def _unrun(it: NotebookNode) -> None:
    _code(it, 0).execution_count = None


def _no_output(it: NotebookNode) -> None:
    _code(it, 0).outputs = []


def _skipped(it: NotebookNode) -> None:
    _code(it, 0).source = "# NBVAL_SKIP\n1"


def _tagged(it: NotebookNode) -> None:
    _code(it, 0).metadata["tags"] = ["raises-exception"]


def _error(it: NotebookNode) -> None:
    _code(it, 0).outputs = [new_output("error", ename="ValueError", evalue="no", traceback=[])]


def _warning(it: NotebookNode) -> None:
    _code(it, 0).outputs = [new_output("stream", name="stderr", text="a warning")]


def _hidden_error(it: NotebookNode) -> None:
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    next(iter(it.metadata.widgets[STATE].state.values())).state["outputs"] = [error]


def _traceback(it: NotebookNode) -> None:
    next(iter(it.metadata.widgets[STATE].state.values())).state["value"] = "Traceback (most recent call last):"


def _path(it: NotebookNode) -> None:
    _code(it, 0).outputs = [new_output("stream", name="stdout", text="saved in /tmp" + "/abc/x.txt")]


def _lost_state(it: NotebookNode) -> None:
    it.metadata.widgets[STATE].state = {}


def _lost_model(it: NotebookNode) -> None:
    _code(it, 1).outputs[-1]["data"][VIEW]["model_id"] = "f" * 32


def _part_missing(it: NotebookNode) -> None:
    it.cells = [cell for cell in it.cells if cell.source != f"## {PARTS[4]}"]


def _parts_swapped(it: NotebookNode) -> None:
    it.cells[1].source, it.cells[2].source = it.cells[2].source, it.cells[1].source


def _untitled(it: NotebookNode) -> None:
    it.cells[0].source = "No title"


def _no_grader(it: NotebookNode) -> None:
    _code(it, 2).metadata = NotebookNode()


def _old_grader(it: NotebookNode) -> None:
    _code(it, 2).metadata.nbgrader["schema_version"] = 1


def _half_an_answer(it: NotebookNode) -> None:
    _code(it, 2).source = _code(it, 2).source.replace(END, "")


def _no_check(it: NotebookNode) -> None:
    _code(it, 3).source = "print(double(21))"


def _no_exercise(it: NotebookNode) -> None:
    it.cells = [cell for cell in it.cells if "double" not in cell.source]


def _same_name(it: NotebookNode) -> None:
    _code(it, 3).metadata.nbgrader["grade_id"] = "double"


def _editor(it: NotebookNode) -> None:
    _code(it, 0).metadata["collapsed"] = True


def _heading_within(it: NotebookNode) -> None:
    it.cells[1].source += "\n\nA text.\n\n### More"


def _no_slide(it: NotebookNode) -> None:
    it.cells[1].metadata.slideshow.slide_type = "slide"


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (_unrun, "not run once each"),
        (_no_output, "no output is saved"),
        (_skipped, "kept from the comparison by NBVAL_SKIP"),
        (_tagged, "kept from the comparison by raises-exception"),
        (_error, "an error is saved: ValueError: no"),
        (_warning, "a warning is saved"),
        (_hidden_error, "inside a widget"),
        (_traceback, "a traceback is saved"),
        (_path, "a path of one machine"),
        (_lost_state, "has no state"),
        (_lost_model, "the state of the widget below 'import ipywidgets' is not saved"),
        (_part_missing, "its parts are"),
        (_parts_swapped, "its parts are"),
        (_untitled, "does not begin with a title"),
        (_heading_within, "'### More' stands within a cell"),
        (_no_slide, "is not that of its slides"),
        (_no_grader, "lacks nbgrader's metadata"),
        (_old_grader, "not of version 3"),
        (_half_an_answer, "does not stand between"),
        (_no_check, "does not call labkit.check"),
        (_no_exercise, "no exercise that can be graded"),
        (_same_name, "share one grade_id"),
        (_editor, "changes from run to run"),
    ],
)
def test_each_rule_is_able_to_complain(
    harm: Callable[[NotebookNode], None], complaint: str, executed: Path, tmp_path: Path
) -> None:
    notebook = nbformat.read(executed, as_version=4)
    harm(notebook)
    path = tmp_path / executed.name
    save(notebook, path)
    assert any(complaint in problem for problem in problems(path))


def test_a_large_file_is_noticed(executed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "LARGEST", 100)
    assert any("larger than" in problem for problem in problems(executed))


def _nbval(path: Path) -> subprocess.CompletedProcess[str]:
    """pytest's verdict on one notebook, with the options that the whole suite has."""
    options = ["-p", "no:cacheprovider", "-c", str(FOLDER.parent / "pyproject.toml"), f"--rootdir={path.parent}"]
    return subprocess.run([sys.executable, "-m", "pytest", *options, str(path)], capture_output=True, text=True)


def _with_one_number_altered(path: Path, copy: Path) -> None:
    """A copy of an executed notebook up to the first saved text with a number, which is another one there."""
    notebook = nbformat.read(path, as_version=4)
    for last, output in [(k, it) for k, cell in enumerate(notebook.cells) for it in cell.get("outputs", ())]:
        holder, key = (output, "text") if "text" in output else (output.get("data", {}), "text/plain")
        text = str(holder.get(key, ""))
        if digit := re.search(r"\d", text):
            holder[key] = text[: digit.start()] + str((int(digit[0]) + 1) % 10) + text[digit.end() :]
            del notebook.cells[last + 1 :]
            save(notebook, copy)
            return
    pytest.fail(f"{path.name} has no number in its saved outputs")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["made here", *(path.stem for path in LESSONS[1:2])])
def test_one_altered_number_fails_the_run(which: str, executed: Path, tmp_path: Path) -> None:
    source, altered = FOLDER / f"{which}.ipynb", tmp_path / "altered.ipynb"
    if which == "made here":  # the lessons' own runs are other tests
        source = tmp_path / "whole.ipynb"
        shutil.copy(executed, source)
        unharmed = _nbval(source)
        assert unharmed.returncode == pytest.ExitCode.OK, unharmed.stdout
    _with_one_number_altered(source, altered)
    harmed = _nbval(altered)
    assert harmed.returncode == pytest.ExitCode.TESTS_FAILED, harmed.stdout
    assert "1 failed" in harmed.stdout
    assert "Cell outputs differ" in harmed.stdout


@pytest.mark.slow
def test_a_prediction_is_compared_and_its_measurement_may_differ_from_run_to_run(tmp_path: Path) -> None:
    ask = 'import random\nimport labkit as lk\nguess = lk.predict("How much?", low=0.0, high=1.0)\nguess'
    notebook, path = new_notebook(cells=[new_code_cell(ask), new_code_cell("guess.reveal(random.random())")]), tmp_path
    save(notebook, path / "whole.ipynb")
    save(execute(path / "whole.ipynb"), path / "whole.ipynb")
    kept = _code(nbformat.read(path / "whole.ipynb", as_version=4), 1).outputs[0]["data"]
    assert kept["text/plain"] == "Prediction and measured: How much?" and kept["image/png"]
    unharmed = _nbval(path / "whole.ipynb")
    assert unharmed.returncode == pytest.ExitCode.OK, unharmed.stdout
