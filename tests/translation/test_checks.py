"""The cards of the exercises in Chinese: what passes, every hint, and what could not be tried."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from labkit import check
from labkit.errors import CheckFailed
from labkit.translation.translate import translated
from tests.check.test_check import RIGHT, WRONG
from tests.check.wrong_puzzles import PUZZLES
from tests.translation.shown import chinese

CHINESE = re.compile(r"[\u4e00-\u9fff]")
CODE = re.compile(r"[\w.]*[(\[{'\"].*|[a-z]+\([\w.]+=.*|\w+|[A-Z]\w+", re.DOTALL)  # calls, values, names
REFUSED = re.compile(  # sentences of labkit's errors, which stay English
    r"TrimmedMean|An edge joins|Deaf, runs|FedAvg does not run|Your program of \d ranks fails|.*shards\)\.$"
)
CALLS: dict[str, list[Callable[[], object]]] = {
    name: [
        *(partial(getattr(check, name), fn, seed=1) for fn in RIGHT[name]),
        *(partial(getattr(check, name), fn, seed=1) for exercise, fn, _ in WRONG if exercise == name),
        partial(getattr(check, name), lambda *args: None, seed=1),
        partial(getattr(check, name), lambda *args: "abc", seed=1),
        partial(getattr(check, name), 3, seed=1),
    ]
    for name in RIGHT
} | PUZZLES


def shown(call: Callable[[], object]) -> tuple[str, str]:
    """The card, and the sentence of an error."""
    try:
        return repr(call()), ""
    except CheckFailed as failed:
        return failed.card, str(failed)


@pytest.mark.parametrize("exercise", CALLS)
def test_every_card_of_an_exercise_is_chinese(exercise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with chinese(monkeypatch) as missed:
        cards = [shown(call) for call in CALLS[exercise]]
    unknown = [it for it in missed if not CODE.fullmatch(it) and not REFUSED.match(it)]
    assert unknown == [], "give these a translation in labkit/translation/zh/checks.txt"
    assert all(CHINESE.search(card) or REFUSED.match(sentence) for card, sentence in cards)
    assert not any(CHINESE.search(sentence) for _, sentence in cards if "协同" not in sentence)


def constants() -> Iterator[str]:
    """What the checks write into cards as it stands: hints, what is expected, and the names of properties."""
    for path in Path(check.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found: list[ast.AST] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found = list(node.args) if node.func.id in ("wrong", "CheckFailed", "Part", "Passed") else []
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found = [node.value] if node.targets[0].id == "hint" else []
            choices = [
                it for each in found for it in ((each.body, each.orelse) if isinstance(each, ast.IfExp) else (each,))
            ]
            yield from (it.value for it in choices if isinstance(it, ast.Constant) and " " in str(it.value))


def test_every_hint_has_a_translation_also_one_that_no_test_is_told() -> None:
    texts = sorted(set(constants()))
    assert len(texts) > 100
    assert [it for it in texts if translated(it, "zh") is None] == []


def test_a_card_speaks_the_language_that_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(n: int, parts: int) -> Any:
        return [[7]] * parts

    english, sentence = shown(partial(check.split, wrong, seed=1))
    assert "hint" in english and "gave" in english and not CHINESE.search(english)
    with chinese(monkeypatch):
        card, same = shown(partial(check.split, wrong, seed=1))
    assert "提示" in card and "hint" not in card and same == sentence  # an error's sentence is looked up in English
