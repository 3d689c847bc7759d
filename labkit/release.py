"""Release: the learner's copy of the lessons, without solutions and without what would tell the results beforehand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from labkit.errors import SettingError

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
TODO = "# Your answer here"
_KEPT = ("Formula", "The code")  # parts of a lesson whose outputs tell nothing beforehand
_VIEW = "application/vnd.jupyter.widget-view+json"


def release(lessons: Path, to: Path) -> list[Path]:
    """Write the learner's copy of every notebook in the folder `lessons` into the folder `to`; the copies' paths.

    Raises SettingError where there are no lessons, and where a copy would replace a file: it may hold answers.
    """
    found = sorted(lessons.glob("*.ipynb"))
    if not found:
        raise SettingError(f"There are no lessons in {lessons}; give the folder that holds the notebooks.")
    copies = [to / path.name for path in found]
    if there := [path.name for path in copies if path.exists()]:
        raise SettingError(f"{to} has {there[0]} already, which may hold answers: choose another folder, or move it.")
    to.mkdir(parents=True, exist_ok=True)
    for path, copy in zip(found, copies, strict=True):
        nbformat.write(stripped(nbformat.read(path, as_version=4)), copy)
    return copies


def stripped(lesson: NotebookNode) -> NotebookNode:
    """A lesson without solutions, and without outputs but those of its formulas and of the code it shows."""
    lesson = nbformat.from_dict(lesson.copy())
    lesson.metadata.pop("widgets", None)
    part = ""
    for cell in lesson.cells:
        if cell.cell_type == "markdown":
            part = [part, *re.findall(r"^## +(.*)$", cell.source, flags=re.MULTILINE)][-1].strip()
        elif cell.cell_type == "code":
            cell.source = without_solutions(cell.source)
            told = part not in _KEPT or any(_VIEW in output.get("data", {}) for output in cell.outputs)
            cell.outputs = [] if told else cell.outputs
            cell.execution_count = None
    return lesson


def without_solutions(source: str) -> str:
    """A cell in which every solution is a gap, and each name that it sets at the top level is there.

    >>> print(without_solutions("### BEGIN SOLUTION" + chr(10) + "plan = [0, 1]" + chr(10) + "### END SOLUTION"))
    # Your answer here
    plan = ...
    """
    return "\n".join(_gaps(source.splitlines()))


def _gaps(lines: list[str]) -> Iterator[str]:
    solution: list[str] | None = None
    for line in lines:
        if line.strip() == BEGIN:
            solution = []
        elif line.strip() == END and solution is not None:
            indent = line[: len(line) - len(line.lstrip())]
            yield f"{indent}{TODO}"
            names = [] if indent else _names("\n".join(solution))
            yield from (f"{name} = ..." for name in names)
            if not names:
                yield f"{indent}..."
            solution = None
        elif solution is None:
            yield line
        else:
            solution.append(line)


def _names(source: str) -> list[str]:
    """What a solution at the top level assigns, imports and functions aside."""
    targets = [target for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]
