"""The glossary and the quiz's questions: complete, each term once, each with a lesson that has it."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

import labkit as lk
from labkit.cards.glossary import Term, glossary
from labkit.cards.lessons import LESSONS, titled
from labkit.cards.questions import QUESTIONS, Choice, Question
from labkit.errors import SettingError

FOLDER = Path(__file__).parents[2] / "notebooks"
FILES = sorted(it.name for it in FOLDER.glob("*.ipynb"))
CHINESE = re.compile(r"[\u4e00-\u9fff]+")
GOOD, BAD = Choice("yes", "It is.", right=True), Choice("no", "It is not.")


def prose(name: str) -> str:
    """What a lesson says, its formula cards' names included."""
    cells = nbformat.read(FOLDER / name, as_version=4).cells
    cards = [
        " ".join(card.name)
        for cell in cells
        for key, card in lk.formulas.items()
        if f'formulas["{key}"]' in cell.source
    ]
    return "\n".join([*(cell.source for cell in cells if cell.cell_type == "markdown"), *cards])


@pytest.mark.parametrize("name", FILES)
def test_every_chinese_term_of_a_lesson_is_in_the_glossary(name: str) -> None:
    assert {it for it in CHINESE.findall(prose(name)) if it not in {term.zh for term in glossary.values()}} == {
        "中文"
    } & set(CHINESE.findall(prose(name)))


def test_lesson_21_shows_the_glossary_as_it_is() -> None:
    cells = nbformat.read(FOLDER / LESSONS[21], as_version=4).cells
    (shown,) = [it for it in cells if it.source.strip() == "lk.glossary"]
    assert shown.outputs[0]["data"]["text/markdown"] == glossary._repr_mimebundle_()["text/markdown"], (
        "run python -m tests.lessons for it"
    )


def test_every_formula_card_is_in_the_glossary() -> None:
    assert {card.name.zh for card in lk.formulas.values()} <= {term.zh for term in glossary.values()}


def test_no_two_terms_share_a_name() -> None:
    assert len({it.zh for it in glossary.values()}) == len({it.en.lower() for it in glossary.values()}) == len(glossary)


@pytest.mark.parametrize("term", glossary.values(), ids=list(glossary))
def test_the_lesson_that_a_term_names_has_it(term: Term) -> None:
    said = prose(LESSONS[term.lesson])
    assert term.zh in said or term.en.lower() in said.lower()


def test_the_lessons_are_those_there_are() -> None:
    assert [name for name in LESSONS.values() if name in FILES] == FILES
    assert titled(20) == "20 · One frontier"


def test_a_term_is_found_by_both_names_and_others_are_refused() -> None:
    assert glossary["gossip"] is glossary["流言传播"]
    with pytest.raises(KeyError, match="not in the glossary"):
        glossary["blockchain"]


def test_the_table_has_a_row_for_each_term_with_a_link() -> None:
    rows = glossary._repr_mimebundle_()["text/markdown"].splitlines()[2:]
    assert len(rows) == len(glossary) and all(re.search(r"\| \[\d\d\]\(\d\d_\w+\.ipynb\) \|$", row) for row in rows)
    assert all(row.count("|") == 5 for row in rows)


@pytest.mark.parametrize("question", QUESTIONS, ids=[f"question {k}" for k in range(1, len(QUESTIONS) + 1)])
def test_each_answer_has_a_reason_of_its_own(question: Question) -> None:
    reasons = [it.why for it in question.choices]
    assert len(set(reasons)) == len(reasons) >= 3 and all(it.endswith((".", "!")) for it in reasons)
    assert all(it.text.count("*") % 2 == 0 == it.why.count("*") % 2 for it in question.choices)


def test_the_right_answer_is_neither_always_first_nor_always_the_longest() -> None:
    places = {[it.right for it in question.choices].index(True) for question in QUESTIONS}
    longest = [max(question.choices, key=lambda it: len(it.text)).right for question in QUESTIONS]
    assert len(places) >= 3 and sum(longest) < len(QUESTIONS)


@pytest.mark.parametrize(
    ("choices", "lesson", "said"),
    [
        ((GOOD,), 7, "at least two"),
        ((GOOD, GOOD), 7, "another text"),
        ((BAD, Choice("maybe", "No.")), 7, "exactly one"),
        ((GOOD, BAD), 22, "no lesson 22"),
    ],
)
def test_a_question_that_is_none_is_refused(choices: tuple[Choice, ...], lesson: int, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Question("Is it?", choices, lesson)
