"""Bench: run the benchmarks one after another, and put the figures of their last lines into one table.

A benchmark is a script `tests/benchmarks/bench_*.py`. It prints what it likes, and at last one line with a JSON object:
numbers, or dicts of numbers by name, are its figures; "skipped" is the reason why it, or one of its parts, was not run,
and null a figure that was not measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SKIPPED = "skipped"


def run(commands: Mapping[str, Sequence[str]], cwd: Path) -> int:
    """Run commands by name, showing what they print as they print it, then the table; 0 if all gave figures."""
    figures: dict[str, Any] = {}
    for name, command in commands.items():
        print(f"== {name}", flush=True)
        status, last = _followed(command, cwd)
        figures[name] = _parsed(last) if status == 0 else f"failed with exit status {status}"
    print(f"\n{table(figures)}", flush=True)
    return int(not figures or any(isinstance(found, str) for found in figures.values()))


def table(figures: Mapping[str, Any]) -> str:
    """A line for each figure of each benchmark: its dict of them, or the sentence that says why there are none.

    >>> print(table({"map": {"ratio": 1.23456, "rows": []}, "flower": {"skipped": "pip reaches no index"}}))
    benchmark  figure   value
    map        ratio    1.235
    flower     skipped  pip reaches no index
    """
    lines = [("benchmark", "figure", "value")]
    for name, found in figures.items():
        rows = [("", found)] if isinstance(found, str) else list(_flat(found)) or [("", "no figures")]
        lines += [(name if at == 0 else "", figure, value) for at, (figure, value) in enumerate(rows)]
    wide = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(f"{name:<{wide[0]}}  {figure:<{wide[1]}}  {value}".rstrip() for name, figure, value in lines)


def _followed(command: Sequence[str], cwd: Path) -> tuple[int, str]:
    """Run a command to its end; its exit status, and its last line that is not empty."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    last = ""
    with subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # it is a pipe
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            last = line.strip() or last
    return process.returncode, last


def _parsed(line: str) -> Any:
    """The object of a last line, or what is wrong with it."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else "no figures: its last line is not one JSON object"


def _flat(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The numbers and reasons of a dict and of the dicts in it; lists are for those who read the line itself."""
    for key, value in found.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif value is None:
            yield name, "not measured: the reason stands above"
        elif isinstance(value, bool) or (key == SKIPPED and isinstance(value, str)):
            yield name, str(value)
        elif isinstance(value, int | float):
            yield name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def commands(root: Path) -> dict[str, Sequence[str]]:
    """How each of the repository's benchmarks is run, by its name."""
    scripts = sorted((root / "tests" / "benchmarks").glob("bench_*.py"))
    return {it.stem.removeprefix("bench_"): [sys.executable, "-m", f"tests.benchmarks.{it.stem}"] for it in scripts}


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    sys.exit(run(commands(root), root))
