"""The repository as a whole: what stands where, and that files which say the same thing agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import labkit
from tests.house import imports, modules
from tests.system import absent, needs

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOP = {
    *(".ci", ".gitattributes", ".gitignore", ".pre-commit-config.yaml"),
    *("CHANGELOG.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "environment.yml", "pyproject.toml"),
    *("datasets", "labkit", "notebooks", "tests"),
}
CONDA_NAMES = {"torch": "pytorch", "dask": "dask-core", "matplotlib": "matplotlib-base"}
FILE_LINES, FUNCTION_LINES = 450, 50  # limits; let the idea decide below them
# Written so that this file does not match itself.
NOT_FOR_OTHERS = {
    "a path of one machine": r"(?<![\w.:}])/(?:home|root|work|Users)/\w",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a credential": r"(?i)\b(?:password|secret|token|api_?key)\s*[=:]\s*['\"][\w/+-]{12,}['\"]",
    "an address with a password": r"://[^/\s:{}]+:[^/\s@{}]+@",
    "a package index": r"--(?:extra-)?index-[u]rl|--find-[l]inks",
}


def files() -> list[Path]:
    """Every file that is, or would be, committed."""
    if not (ROOT / ".git").exists():
        absent("this is not a git checkout")
    listed = subprocess.run(
        [needs("git"), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Requirements by name."""
    return {it.name.lower().replace("_", "-"): it for it in map(Requirement, lines)}


CORE = requirements(PROJECT["dependencies"])
EXTRAS = {name: requirements(lines) for name, lines in PROJECT["optional-dependencies"].items()}


def test_the_top_level_holds_what_was_planned() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in files()} == TOP


def test_no_file_tells_of_the_machine_it_was_written_on() -> None:
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a picture
        for what, pattern in NOT_FOR_OTHERS.items():
            match = re.search(pattern, text)
            assert not match, f"{path.relative_to(ROOT)} holds {what}: {match[0]!r}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_files_and_functions_stay_short(module: str) -> None:
    text = modules()[module].read_text()
    lines = text.count("\n")
    assert lines <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
            length = (node.end_lineno or 0) - first.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines below its docstring"


def test_every_package_imported_is_declared() -> None:
    declared = set(CORE).union(*EXTRAS.values())
    distributions = packages_distributions()
    for module in modules():
        for name, line in imports(module):
            top = name.split(".")[0]
            if top == "labkit" or top in sys.stdlib_module_names:
                continue
            providers = {it.lower().replace("_", "-") for it in distributions.get(top, [top.replace("_", "-")])}
            assert providers & declared, f"{module}:{line} imports {top}, which pyproject.toml does not name"


def test_the_environment_of_conda_names_what_pip_installs() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *packages, of_pip = environment["dependencies"]
    assert of_pip == {"pip": ["-e ."]}
    python, *packages = packages
    assert python == "python=3.11"  # repo2docker understands one minor version, and no range
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.11")
    listed = {name: SpecifierSet(spec) for name, _, spec in (it.partition(" ") for it in packages)}
    assert listed.pop("pip") == SpecifierSet()
    assert listed.pop("jupyter-server-proxy") == EXTRAS["classroom"]["jupyter-server-proxy"].specifier  # for Binder
    assert listed == {CONDA_NAMES.get(name, name): it.specifier for name, it in CORE.items()}


def test_the_constraints_pin_every_direct_dependency_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = requirements([line for line in lines if not line.startswith("#")])
    for extra in ("core", "test", "dev", "classroom", "ssh"):  # gpu needs an older Dask and says so
        for name, wanted in EXTRAS.get(extra, CORE).items():
            (pin,) = pinned[name].specifier
            assert pin.operator == "=="
            assert wanted.specifier.contains(pin.version), f"{name} is tested at {pin.version}, allowed {wanted}"
    assert str(pinned["torch"]) == "torch==2.13.0"  # a +cpu build would be found on few machines


def test_the_makefile_explains_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)
    assert targets
    shown = subprocess.run(
        [needs("make"), "--no-print-directory"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert re.findall(r"^make (\w+) +\S", shown, flags=re.MULTILINE) == targets[1].split()


def test_scripts_can_be_run() -> None:
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", run], check=True)


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert first
    assert first[1] == labkit.__version__
