"""Lessons as files: execute them, keep their diffs small, and find what a reader should never meet in one.

A notebook here is committed *executed*: nbval compares what is saved with what runs, and compares nothing
where x
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from labkit.slides import arranged

PARTS = (
    "Question",
    "Your prediction",
    "Picture",
    "Formula",
    "The code",
    "Experiment",
    "Where it breaks",
    "Exercise",
    "Check yourself",
    "Summary",
    "Further reading",
)
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"
KEPT_OF_A_CELL = {"jupyter", "nbgrader", "slideshow", "tags"}
UNCOMPARED = {"nbval-skip", "nbval-raises-exception", "raises-exception"}
HOME_PATH = re.compile(r"(?<![\w.:/~-])/(?:home|opt|private|root|tmp|usr|var|work|Users)/|\b[A-Z]:\\Users\\")
LARGEST = 2_000_000  # bytes


def execute(path: Path, timeout: float = 120.0) -> NotebookNode:
    """Run every cell of the notebook at `path`, in its folder, and return it with outputs and widget state.

    `timeout` is the limit of one cell in seconds. Raises nbclient's `CellExecutionError` when a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)  # an earlier run's
    folder = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=folder)
    client.coalesce_streams, client.record_timing = True, False
    with TemporaryDirectory() as nobody:  # without the predictions of whoever saves it
        client.execute(env=os.environ | {"XDG_DATA_HOME": nobody})
    _as_it_ended(notebook)
    return normalise(notebook)


def _as_it_ended(notebook: NotebookNode) -> bool:
    """Let the still picture of each run be its last one: that of the moment it was shown has nothing on it.

    Returns whether they were so already.
    """
    state, so_already = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {}), True
    for data in (output.data for cell in _code(notebook) for output in cell.outputs if VIEW in output.get("data", {})):
        models = [state[it] for it in _parts(state, data[VIEW]["model_id"]) if it in state]
        pictures = [it for it in models if it["model_name"] == "ImageModel" and it.get("buffers")]
        if any(it["model_name"] == "IntProgressModel" for it in models) and pictures:
            last = pictures[0]["buffers"][0]["data"]
            so_already &= data["image/png"].strip() == last.strip()
            data["image/png"] = last
    return so_already


def _parts(state: Mapping[str, Any], model: str) -> Iterator[str]:
    """A widget's model and those of all its parts, from top to bottom."""
    yield model
    for child in state.get(model, {}).get("state", {}).get("children", ()):
        yield from _parts(state, child.removeprefix("IPY_MODEL_"))


def normalise(notebook: NotebookNode) -> NotebookNode:
    """A copy without what changes from run to run: widget ids, kernel versions, cell metadata of editors.

    Its cells say what they are among the slides.
    """
    state = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    # nbclient lists models as they were created, which is the same in every run; files list them by their names.
    names = {model: f"{number:032x}" for number, model in enumerate(state)}
    text = re.sub(
        r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])", lambda it: names.get(it[0], it[0]), nbformat.writes(notebook)
    )
    clean: NotebookNode = nbformat.reads(text, as_version=4)
    kept = {"widgets": clean.metadata["widgets"]} if "widgets" in clean.metadata else {}
    clean.metadata = NotebookNode(
        kernelspec=NotebookNode(display_name="Python 3 (ipykernel)", language="python", name="python3"),
        language_info=NotebookNode(name="python"),
        **kept,
    )
    for cell in clean.cells:
        cell.metadata = NotebookNode({key: it for key, it in cell.metadata.items() if key in KEPT_OF_A_CELL})
    return arranged(clean)


def save(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook to `path`."""
    nbformat.write(notebook, path)


def problems(path: Path) -> list[str]:
    """Everything that is wrong with the committed notebook at `path`, one sentence each."""
    notebook = nbformat.read(path, as_version=4)
    found = [*_unexecuted(notebook), *_unsightly(notebook), *_lost_widgets(notebook), *_misplaced(notebook)]
    found += _ungradable(notebook)
    if not _as_it_ended(notebook):
        found.append("the still picture of a run is not its last one (make notebooks)")
    if nbformat.writes(normalise(notebook)) != nbformat.writes(notebook):
        found.append("metadata that changes from run to run is saved, or is not that of its slides (make notebooks)")
    if path.stat().st_size > LARGEST:
        found.append(f"the file is larger than {LARGEST // 10**6} MB")
    return found


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def _unexecuted(notebook: NotebookNode) -> Iterator[str]:
    cells = _code(notebook)
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "its cells were not run once each, from top to bottom (make notebooks)"
    for cell in cells:
        first = cell.source.strip().splitlines()[0]
        marks = set(cell.metadata.get("tags", [])) | set(re.findall(r"NBVAL_\w+", cell.source))
        if unchecked := {mark for mark in marks if mark.lower().replace("_", "-") in UNCOMPARED}:
            yield f"cell {first!r} is kept from the comparison by {', '.join(sorted(unchecked))}"
        if _shows(cell.source) and not cell.outputs:
            yield f"cell {first!r} shows something, but no output is saved (make notebooks)"


def _shows(source: str) -> bool:
    """Whether code surely has an output: it prints at its top level, or ends in a value that no call made."""
    body = ast.parse(re.sub(r"^%.*$", "pass", source, flags=re.MULTILINE)).body
    expressions = [statement.value for statement in body if isinstance(statement, ast.Expr)]
    if any(isinstance(it, ast.Call) and ast.unparse(it.func) in {"print", "display"} for it in expressions):
        return True
    ends_in_value = bool(body) and isinstance(body[-1], ast.Expr) and not source.rstrip().endswith(";")
    return ends_in_value and not isinstance(expressions[-1], ast.Call | ast.Await | ast.Constant)


def _strings(value: Any) -> Iterator[str]:
    """Every string within nested lists and mappings, pictures and other binary data left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if not key.startswith("image/") and key != "buffers":
                yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _unsightly(notebook: NotebookNode) -> Iterator[str]:
    outputs = [output for cell in _code(notebook) for output in cell.outputs]
    state = notebook.metadata.get("widgets", {})
    for output in outputs:
        if output.output_type == "error":
            yield f"an error is saved: {output.ename}: {output.evalue}"
        if output.get("name") == "stderr":
            yield f"a warning is saved: {output.text.strip()[:80]!r}"
    if re.search(r'"output_type": "error"|"name": "stderr"', json.dumps(state)):
        yield "an error or a warning is saved inside a widget"
    for text in _strings([outputs, state]):
        if "Traceback (most recent call last)" in text:
            yield "a traceback is saved"
        if match := HOME_PATH.search(text):
            yield f"a path of one machine is saved: {text[match.start() :][:60]!r}"


def _lost_widgets(notebook: NotebookNode) -> Iterator[str]:
    widgets = notebook.metadata.get("widgets", {})
    state = widgets.get(STATE, {}).get("state", {})
    if widgets and not state:
        yield "metadata.widgets has no state, which GitHub calls an invalid notebook"
    for cell in _code(notebook):
        for output in cell.outputs:
            view = output.get("data", {}).get(VIEW)
            if view and view["model_id"] not in state:
                yield f"the state of the widget below {cell.source.strip().splitlines()[0]!r} is not saved"


def _misplaced(notebook: NotebookNode) -> Iterator[str]:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = tuple(heading.strip() for heading in re.findall(r"^## +(.*)$", text, flags=re.MULTILINE))
    if headings != PARTS:
        yield f"its parts are {', '.join(headings) or 'none'}; a lesson's are {', '.join(PARTS)}"
    if not notebook.cells or not re.match(r"# \S", notebook.cells[0].source):
        yield "it does not begin with a title"
    for cell in (cell for cell in notebook.cells if cell.cell_type == "markdown"):
        prose = re.sub(r"^```.*?^```", "", cell.source, flags=re.DOTALL | re.MULTILINE)
        if heading := re.search(r"^[^#\n].*\n+(#+ .*)$", prose, flags=re.MULTILINE):
            yield f"{heading[1]!r} stands within a cell: let it begin one, as it begins a slide"


def _ungradable(notebook: NotebookNode) -> Iterator[str]:
    """nbgrader removes what is between the marks, and runs the graded cell that follows."""
    answers = graded = 0
    names = []
    for cell in _code(notebook):
        grader = cell.metadata.get("nbgrader", {})
        names += [grader["grade_id"]] if grader else []
        if grader and grader.get("schema_version") != 3:
            yield f"the nbgrader metadata of {grader.get('grade_id')!r} is not of version 3"
        if BEGIN in cell.source or END in cell.source:
            answers += 1
            if not re.fullmatch(f".*{BEGIN}\n.*{END}\\s*", cell.source, flags=re.DOTALL):
                yield f"an answer does not stand between {BEGIN!r} and {END!r}"
            if not grader.get("solution"):
                yield "an answer cell lacks nbgrader's metadata (solution)"
        if grader.get("grade"):
            graded += 1
            if "check." not in cell.source:
                yield f"the graded cell {grader['grade_id']!r} does not call labkit.check"
    if answers == 0 or graded == 0:
        yield "it has no exercise that can be graded: an answer cell and a cell that checks it"
    if len(set(names)) != len(names):
        yield "two cells share one grade_id"


def main() -> int:
    """Execute the lessons in place, or with --check say what is wrong with them as they are saved."""
    parser = argparse.ArgumentParser(prog="python -m tests.lessons", description=main.__doc__)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true", help="execute nothing; list what is wrong")
    args = parser.parse_args()
    wrong = 0
    for path in args.paths or sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb")):
        if not args.check:
            started = perf_counter()
            save(execute(path), path)
            print(f"{path.name}: {perf_counter() - started:.0f} s")
        for problem in problems(path):
            wrong += 1
            print(f"{path.name}: {problem}", file=sys.stderr)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
