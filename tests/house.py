"""The house as its imports draw it: rooms, floors and circles; `python -m tests.house` draws it into README.md."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "labkit"
README = ROOT / "README.md"
BEGIN, END = "<!-- the house, drawn by python -m tests.house -->", "<!-- end of the house -->"
Graph = Mapping[str, set[str]]


@cache
def modules() -> dict[str, Path]:
    """Every module of the package but the package itself, whose lazy table points at all floors by design."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del found["labkit"]
    return found


@cache
def imports(module: str) -> tuple[tuple[str, int], ...]:
    """What a module imports anywhere in its text, also inside functions and for types only, and in which lines."""
    found = []
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively; write the full name"
            # `from package import module` imports a module; `from module import name` does not
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name if name in modules() else str(node.module), node.lineno) for name in full]
    return tuple(found)


def room(module: str) -> str:
    """The folder that a module lies in, or its own name in the root: labkit.engines.stacked.peers → engines."""
    return module.split(".")[1]


def folder(module: str) -> str:
    """The innermost folder: labkit.engines.stacked.peers → engines/stacked."""
    inner = modules()[module].parent.relative_to(PACKAGE).parts
    return "/".join(inner) or room(module)


def arrows(of: Callable[[str], str] = str) -> Graph:
    """Who imports whom, between modules or what `of` makes of them, such as rooms."""
    graph: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        graph[of(module)] |= {of(name) for name, _ in imports(module) if name in modules()} - {of(module)}
    return graph


def circle(graph: Graph) -> list[str]:
    """One circle of a graph, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def floors(graph: Graph) -> dict[str, int]:
    """The floor of each node of a graph without circles: 1 on the ground, else one above all that it imports."""
    level: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        level[node] = 1 + max((level[below] for below in graph.get(node, ())), default=0)
    return level


def says(name: str) -> str:
    """The first sentence of a room's docstring, without its name."""
    path = PACKAGE / name / "__init__.py" if (PACKAGE / name).is_dir() else PACKAGE / f"{name}.py"
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
    return re.sub(r"^(The )?\w+: ", "", first).split(". ")[0].rstrip(".")


def drawing() -> str:
    """The floors from the top down as a table for README."""
    level = floors(arrows(room))
    lines = ["| floor | room | what lives there |", "| --- | --- | --- |"]
    for name in sorted(level, key=lambda it: (-level[it], it)):
        place = f"`{name}/`" if (PACKAGE / name).is_dir() else f"`{name}.py`"
        inside = sorted(it.name for it in (PACKAGE / name).glob("*/") if (it / "__init__.py").exists())
        rooms = "".join(f" `{it}/`" for it in inside)
        lines.append(f"| {level[name]} | {place}{' with' if rooms else ''}{rooms} | {says(name)} |")
    return "\n".join(lines)


def drawn(text: str) -> str:
    """README's text with the house as it is now."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{drawing()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(drawn(README.read_text()))
