"""Grading: each exercise of each submission by itself, the answer in one process and the teacher's check in another.

What a learner hands in is only ever run in the answer's process. Which exercises there are, what they are worth and how
they are checked is read from the teacher's lessons.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import queue
import re
import secrets
import select
import signal
import subprocess
import symtable
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbformat

from labkit.checks import whole
from labkit.classroom.checking import Exercise
from labkit.classroom.isolation import wrapper
from labkit.cluster import deadlines
from labkit.cluster.machine import usable_cores
from labkit.errors import SettingError
from labkit.text import Table, short

SECONDS, CPU, MEMORY = 8.0, 120, 2 << 30
"""What an answer may take: seconds for a call, seconds of CPU in all, and bytes."""
_ALL_TOGETHER = 300.0  # seconds for one exercise, whatever happens
_UNKNOWN = ("LABKIT_BOARD", "NBGRADER_EXECUTION")  # to checks: no news for the class, and no half answers let through


@dataclass(frozen=True)
class Grade:
    """What one exercise of one submission got: `points` of `of`, and the check's own sentence."""

    student: str
    lesson: str
    exercise: str
    points: float | None  # None: not graded here, for a person to look at
    of: float
    said: str


class Grades(tuple[Grade, ...]):
    """All grades; prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        rows = [
            (it.student, it.lesson, it.exercise, "–" if it.points is None else f"{it.points:g}", f"{it.of:g}",
             short(it.said, 70).strip("'\""))
            for it in self
        ]  # fmt: skip
        return repr(Table(("student", "lesson", "exercise", "points", "of", "said"), rows, left=3))

    def write(self, path: Path) -> None:
        """Write them as CSV."""
        with path.open("w", newline="", encoding="utf-8") as file:
            lines = csv.DictWriter(file, fieldnames=list(Grade.__dataclass_fields__))
            lines.writeheader()
            lines.writerows(asdict(it) for it in self)


def grade(submitted: Path, source: Path, *, seed: int | None = None, jobs: int | None = None) -> Grades:
    """Grade the notebooks below `submitted` (STUDENT/…/LESSON.ipynb) by the teacher's in `source`.

    All answers meet the same fresh cases, of a seed that nobody knew before, unless it is given. `jobs` exercises are
    graded at a time, by default one for each core. Raises SettingError where there is nothing to grade.

    >>> grade(Path("nowhere"), Path("notebooks"))
    Traceback (most recent call last):
    labkit.errors.SettingError: There are no notebooks below nowhere; give the folder with one folder for each student.
    """
    seed = secrets.randbelow(10**9) if seed is None else whole(seed, "seed", least=0)
    jobs = usable_cores() if jobs is None else whole(jobs, "jobs")
    lessons = {path.stem: path for path in sorted(source.glob("*.ipynb"))}
    found = sorted(path for path in submitted.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    if not found:
        raise SettingError(
            f"There are no notebooks below {submitted}; give the folder with one folder for each student."
        )
    if not any(path.stem in lessons for path in found):
        raise SettingError(f"None of the notebooks below {submitted} is named as one in {source}; give their lessons.")
    apart = wrapper([str(it.resolve()) for it in (submitted, source)])
    handed_in: dict[tuple[str, str], list[Path]] = {}
    for path in found:
        if path.stem in lessons:
            student = path.relative_to(submitted).parts[0].removesuffix(".ipynb")
            handed_in.setdefault((student, path.stem), []).append(path)
    tasks = {lesson: _tasks(lessons[lesson]) for lesson in sorted({lesson for _, lesson in handed_in})}
    work = [
        (student, lesson, *it)
        for (student, lesson), paths in handed_in.items()
        for it in _exercises(tasks[lesson], paths, submitted, seed, apart)
    ]
    lost = [_unknown(path, submitted) for path in found if path.stem not in lessons]
    lost += [
        Grade(it.name, "", "", None, 0.0, "Not graded: no notebook was handed in.")
        for it in sorted(submitted.iterdir())
        if it.is_dir() and not any(it in path.parents for path in found)
    ]
    free = queue.SimpleQueue[Checker]()
    with ExitStack() as ending, ThreadPoolExecutor(jobs) as pool:
        for checker in [Checker() for _ in range(jobs)]:
            free.put(checker)
            ending.callback(checker.close)
        return Grades((*pool.map(lambda it: _graded(free, *it), work), *lost))


def _graded(
    free: queue.SimpleQueue[Checker],
    student: str,
    lesson: str,
    cell: dict[str, Any],
    given: Exercise | tuple[float | None, str],
) -> Grade:
    of, name = float(cell["points"]), str(cell["grade_id"])
    if isinstance(given, tuple):
        return Grade(student, lesson, name, given[0], of, given[1])
    checker = free.get()
    try:
        found = checker.check(given)
    finally:
        free.put(checker)
    points = None if found["points"] is None else round(of * found["points"] / found["of"], 4)
    return Grade(student, lesson, name, points, of, found["said"])


def _unknown(path: Path, submitted: Path) -> Grade:
    """What is said of a notebook that a browser, or its student, has given another name."""
    student = path.relative_to(submitted).parts[0].removesuffix(".ipynb")
    said = f"Not graded: {path.relative_to(submitted)} is named like no lesson; give it its lesson's name."
    return Grade(student, path.stem, "", None, 0.0, said)


class Checker:
    """A process that checks one exercise after another, each in a fork of its own, so that labkit is loaded once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def check(self, exercise: Exercise) -> dict[str, Any]:
        """Check one exercise; {"points", "of", "said"}, whatever happens there.

        No points, None, are for what went wrong with the check itself: nobody's answer is to blame.
        """
        process = self._process = self._process or subprocess.Popen(
            [sys.executable, "-m", "labkit.classroom.checking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name not in _UNKNOWN},
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # which shows as no answer
            process.stdin.write(json.dumps(asdict(exercise)) + "\n")
            process.stdin.flush()
        if not select.select([process.stdout], [], [], _ALL_TOGETHER)[0]:
            self.close()
            return {"points": 0.0, "of": 1.0, "said": f"The exercise as a whole took more than {_ALL_TOGETHER:g} s."}
        try:
            found: dict[str, Any] = json.loads(process.stdout.readline())
        except ValueError:
            self.close()
            said = "Not graded: the check itself did not end well (it was ended); look at the notebook."
            return {"points": None, "of": 1.0, "said": said}
        return found

    def close(self) -> None:
        """End it, with the answer that it may be at."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.communicate(timeout=deadlines.GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


# -- what stands in the notebooks


@dataclass(frozen=True)
class _Task:
    """A checked cell of the teacher's lesson."""

    cell: dict[str, Any]
    check: str
    setup: tuple[str, ...]
    names: tuple[str, ...]  # of what is checked
    answers: frozenset[str]  # the cells that give those
    on_workers: bool


def _tasks(lesson: Path) -> list[_Task]:
    """The checked cells of a lesson; raises SettingError where a cell is no Python."""
    cells = _cells(lesson)
    gives = {cell["grade_id"]: _bound(_statements(it)) for cell, it in cells if cell.get("solution")}
    answered = set[str]().union(*gives.values())
    plain = [it for cell, source in cells if not cell for it in _statements(source)]
    found = []
    for cell, source in cells:
        if not cell.get("grade"):
            continue
        *before, check = _statements(source)
        used = _used([*before, check])
        names = used & answered
        found.append(
            _Task(
                cell,
                ast.unparse(check),
                tuple(ast.unparse(it) for it in (*_needed(used - answered, plain), *before)),
                tuple(sorted(names)),
                frozenset(it for it, given in gives.items() if names & given),
                _needs_workers(check, used, plain),
            )
        )
    return found


def _exercises(
    tasks: Iterable[_Task], paths: Sequence[Path], submitted: Path, seed: int, apart: tuple[str, ...]
) -> Iterator[tuple[dict[str, Any], Exercise | tuple[float | None, str]]]:
    """Each task, with what a student's notebook gives for it, or the points and a sentence where there is nothing."""
    given: tuple[float | None, str] | None = None
    theirs: list[tuple[dict[str, Any], str]] = []
    if len(paths) > 1:
        named = ", ".join(str(it.relative_to(submitted)) for it in paths)
        given = None, f"Not graded: {len(paths)} notebooks of one lesson, {named}; keep the one that counts."
    elif paths[0].resolve() != submitted.resolve() / paths[0].relative_to(submitted):
        given = None, "Not graded: the notebook is a link to another place, and may be somebody else's."
    else:
        try:
            theirs = _cells(paths[0])
        except Exception as error:  # noqa: BLE001  it may be anything but a notebook
            given = 0.0, f"The notebook cannot be read ({type(error).__name__})."
    for it in tasks:
        if given:
            yield it.cell, given
        elif it.on_workers:
            said = "Not graded here: it runs on real workers; grade it with nbgrader, or look at the notebook."
            yield it.cell, (None, said)
        else:
            answers = _answer(theirs, it.answers)
            yield it.cell, Exercise(it.check, it.setup, answers, it.names, seed, SECONDS, CPU, MEMORY, apart)


def _cells(path: Path) -> list[tuple[dict[str, Any], str]]:
    """nbgrader's metadata and the source of each code cell."""
    notebook = nbformat.read(path, as_version=4)
    return [(dict(it.metadata.get("nbgrader", {})), it.source) for it in notebook.cells if it.cell_type == "code"]


def _needs_workers(check: ast.stmt, used: set[str], plain: Sequence[ast.stmt]) -> bool:
    """Whether a check wants a lab, by a name that stands for one in the lesson, or calls the answer itself."""
    tree = check.value if isinstance(check, ast.Expr) else check
    labs = {name for it in plain if "connect(" in ast.unparse(it) for name in _bound([it])}
    inner = isinstance(tree, ast.Call) and any(isinstance(it, ast.Call) for arg in tree.args for it in ast.walk(arg))
    return inner or bool(used & labs)


def _answer(theirs: Sequence[tuple[dict[str, Any], str]], ids: frozenset[str]) -> tuple[str, ...]:
    """The submission's statements that an answer needs: those of its own cells last, as they stand."""
    everything = [it for cell, source in theirs if not cell.get("grade") for it in _statements(source, strict=False)]
    own = [_plain(source) for cell, source in theirs if cell.get("grade_id") in ids]
    statements = [it for source in own for it in _statements(source, strict=False)]
    wanted = _used(statements) - _bound(statements)
    before = [ast.unparse(it) for it in _needed(wanted, everything)]
    return (*before, *own)


def _statements(source: str, strict: bool = True) -> list[ast.stmt]:
    """The statements of a cell; none where it is no Python."""
    with suppress(SyntaxError, ValueError, RecursionError):
        return ast.parse(_plain(source)).body
    if strict:
        raise SettingError(f"A cell of the lesson is no Python: {short(source, 60)}.")
    return []


def _plain(source: str) -> str:
    """The source of a cell without what only IPython reads: lines with % or !, where they do not continue others."""
    with suppress(SyntaxError, ValueError, RecursionError):
        ast.parse(source)
        return source
    return "\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in source.split("\n"))


def _needed(names: set[str], statements: Sequence[ast.stmt]) -> list[ast.stmt]:
    """The statements that bind these names, and what those need in turn, in order."""
    bound = [_bound([it]) for it in statements]
    chosen: set[int] = set()
    wanted, known = list(names), set(names)
    while wanted:
        name = wanted.pop()
        for number, it in enumerate(statements):
            if number not in chosen and name in bound[number]:
                chosen.add(number)
                new = _used([it]) - known
                known |= new
                wanted += new
    return [statements[number] for number in sorted(chosen)]


def _bound(statements: Iterable[ast.stmt]) -> set[str]:
    """The names that statements bind at the top level."""
    top = _table(statements)
    return {it.get_name() for it in top.get_symbols() if it.is_assigned() or it.is_imported()}


def _used(statements: Iterable[ast.stmt]) -> set[str]:
    """The names that statements, and the functions in them, look for at the top level."""
    tables, found = [_table(statements)], set[str]()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        found |= {it.get_name() for it in table.get_symbols() if (top and it.is_referenced()) or it.is_global()}
    return found


def _table(statements: Iterable[ast.stmt]) -> symtable.SymbolTable:
    return symtable.symtable("\n".join(ast.unparse(it) for it in statements), "<cell>", "exec")
