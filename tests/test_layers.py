"""The house keeps its floors: no module imports one from a higher floor, none imports in a circle."""

from __future__ import annotations

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "labkit"
FLOORS = {
    "errors": 1,
    "allocator": 1,
    "frames": 1,
    "tree": 1,
    "history": 1,
    "news": 1,
    "lanes": 1,
    "throughput": 1,
    "table": 1,
    "archive": 1,
    "board": 1,
    "record": 5,
    "panel": 1,
    "labels": 1,
    "mathtext": 1,
    "frontier": 1,
    "plots": 1,
    "histograms": 1,
    "learning_curves": 1,
    "costs": 1,
    "tasks": 2,
    "exchange": 2,
    "data": 2,
    "algorithms": 3,
    "cluster": 3,
    "cards": 3,
    "check": 3,
    "verdicts": 3,
    "notebooks": 3,
    "bench": 3,
    "engines": 4,
    "__main__": 4,
    "planning": 5,
    "refinements": 5,
    "dealing": 5,
    "trainable": 5,
    "training": 5,
    "background": 5,
    "comparison": 5,
    "stepping": 5,
    "run": 5,
    "live": 5,
    "widgets": 6,
}
# Who may import what from outside, besides numpy, nbclient, nbformat and Python's own.
GUESTS = {
    "torch": {
        "tree",
        "exchange",
        "data",
        "algorithms",
        "cluster",
        "engines",
        "planning",
        "refinements",
        "trainable",
        "training",
        "comparison",
        "stepping",
        "widgets",
        "record",
        "board",
    },
    "dask": {"cluster"},
    "distributed": {"cluster"},
    "dask_gateway": {"cluster"},
    "asyncssh": {"cluster"},
    "cloudpickle": {"cluster", "data"},
    "matplotlib": {"panel", "plots", "learning_curves", "frontier"},
    "sklearn": {"data"},
    "pooch": {"data"},
    "dp_accounting": {"exchange"},
    "ipywidgets": {"cluster", "live", "widgets"},
    "IPython": {"cluster", "live", "widgets"},
    "jupyterlab": {"__main__"},
    "psutil": {"cluster"},
    "PIL": {"panel", "widgets"},
    "numpy": set(FLOORS) - {"errors", "__main__"},
    "nbclient": {"notebooks"},
    "nbformat": {"notebooks"},
}
# cluster/ runs functions and never sees an algorithm; exchange/ is about tensors and never sees where data come from.
APART = {"cluster": {"exchange", "algorithms", "engines", "data"}, "exchange": {"data"}, "tasks": {"exchange", "data"}}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package but the package itself, whose lazy table points at all floors by design."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    del found["labkit"]
    return found


@cache
def imports(module: str, types: bool = True) -> tuple[tuple[str, int], ...]:
    """What a module imports anywhere in its text, also inside functions and (`types`) for types only; the lines."""
    found = []
    tree = ast.parse(modules()[module].read_text())
    typed = [it for it in ast.walk(tree) if isinstance(it, ast.If) and ast.unparse(it.test) == "TYPE_CHECKING"]
    unseen = set() if types else {node for block in typed for node in ast.walk(block)}
    for node in set(ast.walk(tree)) - unseen:
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively; write the full name"
            # `from package import module` imports a module; `from module import name` does not
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name if name in modules() else str(node.module), node.lineno) for name in full]
    return tuple(found)


def part(module: str) -> str:
    """The part of the house a module belongs to: labkit.cluster.lab → cluster."""
    return module.split(".")[1]


def test_every_module_has_its_floor() -> None:
    assert {part(module) for module in modules()} == set(FLOORS)


@pytest.mark.parametrize("module", sorted(modules()))
def test_no_module_imports_from_a_higher_floor(module: str) -> None:
    for name, line in imports(module):
        if not name.startswith("labkit"):
            continue
        where = f"{module}:{line}"
        assert name != "labkit", f"{where} imports the package, and with it every floor; import the module"
        assert FLOORS[part(name)] <= FLOORS[part(module)], f"{where} reaches up to {name}"
        assert part(name) not in APART.get(part(module), ()), f"{where} must not know of {name}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_only_the_right_rooms_receive_guests(module: str) -> None:
    for name, line in imports(module):
        top = name.split(".")[0]
        if top != "labkit" and top not in sys.stdlib_module_names:
            assert part(module) in GUESTS.get(top, ()), f"{module}:{line} imports {name}"


def test_no_module_imports_in_a_circle() -> None:
    # A name imported for its type only is never loaded, so it closes no circle.
    inner = {module: {name for name, _ in imports(module, types=False)} & set(modules()) for module in modules()}
    graph = {module: names - {module} for module, names in inner.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_matplotlib_is_loaded_only_when_something_is_drawn() -> None:
    for module, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", [])] + [getattr(node, "module", None) or ""]
            assert not any(name.startswith("matplotlib") for name in names), f"{module} imports it at its top"
