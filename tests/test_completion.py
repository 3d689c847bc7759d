"""Completion shows what is public and nothing else, and the keys of what is looked up by name."""

from __future__ import annotations

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

import labkit as lk

MODULES = ["algorithms", "check", "costs", "data", "errors", "exchange", "widgets"]


@pytest.fixture(scope="module")
def shell():
    shell = InteractiveShell.instance()
    shell.user_ns["lk"] = lk
    yield shell
    InteractiveShell.clear_instance()


def offered(shell, text, jedi):
    shell.Completer.use_jedi = jedi
    with provisionalcompleter():
        found = [it.text for it in shell.Completer.completions(text, len(text))]
    return {it.rpartition(".")[2].strip("[]'\"") for it in found}


@pytest.mark.parametrize("name", MODULES)
def test_dir_is_what_is_public(name):
    module = getattr(lk, name)
    assert dir(module) == sorted(module.__all__) and all(hasattr(module, it) for it in module.__all__)


def test_dir_of_the_package_is_what_is_public():
    assert dir(lk) == sorted(lk.__all__)


@pytest.mark.parametrize("jedi", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_a_notebook_offers_what_is_public(shell, name, jedi):
    assert offered(shell, f"lk.{name}.", jedi) == set(getattr(lk, name).__all__)


@pytest.mark.parametrize("jedi", [False, True])
def test_a_notebook_offers_what_the_package_has(shell, jedi):
    assert offered(shell, "lk.", jedi) == set(lk.__all__)


def test_keys_are_offered(shell):
    assert offered(shell, 'lk.formulas["', False) == set(lk.formulas)
    shell.user_ns["race"] = lk.compare(
        {"mine": lk.algorithms.AllReduce(), "yours": lk.algorithms.Independent()},
        lambda: __import__("torch").nn.Linear(64, 10),
        lk.data.load("digits"),
        steps=1,
    ).result(60)
    assert offered(shell, 'race.histories["', False) >= {"mine", "yours"}
