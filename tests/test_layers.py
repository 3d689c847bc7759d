"""The house keeps its floors: arrows run down only, nothing imports in a circle, and every room is a known one."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError

import pytest

from tests.house import README, arrows, circle, drawn, floors, folder, imports, modules, room

# Every room there is, with what it may import from outside besides numpy and Python's own.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "text": set(),
    "translation": set(),
    "accessible": {"anywidget", "traitlets"},
    "checks": set(),
    "tree": {"torch"},
    "costs": set(),
    "plots": {"matplotlib", "PIL"},
    "tasks": set(),
    "history": {"torch"},  # its TensorBoard writer
    "exchange": {"torch", "networkx", "dp_accounting"},
    "data": {"torch", "cloudpickle", "pooch", "sklearn"},
    "algorithms": {"torch"},
    "models": {"torch"},
    "cards": set(),
    "cluster": {
        "cryptography",
        "torch",
        "dask",
        "distributed",
        "dask_gateway",
        "asyncssh",
        "cloudpickle",
        "psutil",
        "ipywidgets",
        "IPython",
    },
    "cluster/gang": {"torch", "distributed", "cloudpickle", "psutil"},
    "check": {"torch"},
    "engines": {"torch"},
    "engines/stacked": {"torch"},
    "engines/asynchronous": {"torch"},
    "engines/distributed": {"torch"},
    "training": {"torch", "ipywidgets", "IPython"},
    "widgets": {"anywidget", "torch", "ipywidgets", "traitlets", "IPython", "PIL", "platformdirs"},
    "release": {"nbformat"},
    "book": {"nbformat", "sphinx", "docutils", "latex2mathml"},
    "slides": {"nbformat", "nbconvert", "latex2mathml"},
    "classroom": {
        "cryptography",
        "torch",
        "nbformat",
        "tornado",
        "jupyterhub",
        "psutil",
        "dask_gateway_server",
        "aiohttp",
        "traitlets",
    },
    "__main__": {"jupyterlab"},
}
MOST_FLOORS = 9  # the package's own face, on top of all, included
# What a room must not know of, though it stands below: cluster/ runs functions, exchange/ is about tensors, tasks/ and
# costs/ are arithmetic; the three kinds of engine know the core of engines/ and not each other.
APART = {
    "cluster": {"exchange", "algorithms", "engines", "data"},
    "cluster/gang": {"exchange", "algorithms", "engines", "data"},
    "exchange": {"data"},
    "tasks": {"exchange", "data", "tree"},
    "costs": {"tree"},
    "engines/stacked": {"engines/asynchronous", "engines/distributed"},
    "engines/distributed": {"engines/asynchronous", "engines/stacked"},
    "engines/asynchronous": {"engines/distributed"},
}
BUT = {"labkit.engines.distributed.reporting"}  # which asynchronous ranks use too


def test_every_room_is_a_known_one() -> None:
    assert {folder(module) for module in modules()} == set(ROOMS)


def test_nothing_imports_in_a_circle() -> None:
    # What is imported for its type only counts: whoever reads one file of a circle has to read them all.
    assert circle(arrows()) == []
    assert circle(arrows(room)) == []


def test_the_house_has_no_more_floors_than_its_drawing_and_the_drawing_is_that_of_the_code() -> None:
    assert max(floors(arrows(room)).values()) + 1 <= MOST_FLOORS
    text = README.read_text()
    assert drawn(text) == text, "draw the house into README anew: python -m tests.house"


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_room_knows_only_what_it_should(name: str) -> None:
    for module in (it for it in modules() if folder(it) == name):
        for imported, line in imports(module):
            where, top = f"{module}:{line}", imported.split(".")[0]
            assert imported != "labkit", f"{where} imports the package, and with it every floor; import the module"
            if imported in modules():
                known = {folder(imported), room(imported)} if imported not in BUT else set()
                assert not known & APART.get(name, set()), f"{where} must not know of {imported}"
            elif top not in sys.stdlib_module_names:
                assert top in {"numpy"} | ROOMS[name], f"{where} imports {imported}"


def test_matplotlib_is_loaded_only_when_something_is_drawn() -> None:
    for module, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", [])] + [getattr(node, "module", None) or ""]
            assert not any(name.startswith("matplotlib") for name in names), f"{module} imports it at its top"


WAITS = {"timeout", "wait", "sleep", "join", "settimeout", "call_later", "poll"}


def test_every_deadline_of_the_cluster_and_of_the_engines_stands_in_one_file() -> None:
    for module in (it for it in modules() if room(it) in ("cluster", "engines")):
        for node in ast.walk(ast.parse(modules()[module].read_text())):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                given = [it.value for it in node.keywords if it.arg in WAITS] + (
                    node.args[:1] if called in WAITS else []
                )
                numbers = [it for it in given if isinstance(it, ast.Constant) and isinstance(it.value, int | float)]
                assert not any(it.value for it in numbers), f"{module}:{node.lineno} waits for a number of its own"


def test_a_circle_and_an_arrow_that_runs_up_are_found() -> None:
    assert sorted(set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}))) == ["a", "b", "c"]
    assert floors({"a": {"b"}, "b": {"c"}, "d": {"c"}}) == {"a": 3, "b": 2, "c": 1, "d": 2}
    with pytest.raises(CycleError):
        floors({"a": {"b"}, "b": {"a"}})
