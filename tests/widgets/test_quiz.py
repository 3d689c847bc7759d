"""The quiz: each answer is told why, the first one counts, and it is there without a front end, too."""

from __future__ import annotations

import pytest
from IPython.core.formatters import DisplayFormatter

import labkit as lk
from labkit.cards.lessons import LESSONS
from labkit.cards.questions import QUESTIONS, Choice, Question
from labkit.errors import SettingError
from labkit.widgets.quiz import compute

SMALL = Question(
    "Is 1 < 2 *always*?", (Choice("yes", "It *is*.", right=True), Choice("no <b>", "Count <again>.")), lesson=2
)


@pytest.mark.parametrize("question", QUESTIONS, ids=[f"question {k}" for k in range(1, len(QUESTIONS) + 1)])
def test_every_answer_is_told_its_own_reason_and_the_lesson(question: Question) -> None:
    for choice in question.choices:
        told = compute(question, choice.text)
        assert told.right == choice.right and choice.why in told.sentence
        assert f'href="{LESSONS[question.lesson]}"' in told.html
        assert told.sentence.startswith("✓ Right." if choice.right else "✗ Not so.")


def test_an_answer_that_there_is_not_is_refused() -> None:
    with pytest.raises(SettingError, match="perhaps"):
        compute(SMALL, "perhaps")
    with pytest.raises(SettingError, match="no question 2"):
        lk.quiz([SMALL]).answer(2, "yes")
    with pytest.raises(SettingError, match="needs questions"):
        lk.quiz([])
    with pytest.raises(SettingError, match="needs questions"):
        lk.quiz(["Is it?"])  # type: ignore[list-item]


def test_nothing_is_chosen_and_nothing_is_told_before_the_learner_answers() -> None:
    made = lk.quiz()
    assert all(it.control.value is None and ">" in it.said.value for it in made.asked)
    assert not any("Right" in it.said.value or "Not so" in it.said.value for it in made.asked)
    assert f"0 of {len(QUESTIONS)} questions right" in made.status.value


def test_the_button_without_a_choice_asks_for_one_and_does_not_count() -> None:
    made = lk.quiz([SMALL])
    made.asked[0].button.click()
    assert "Choose one" in made.asked[0].said.value and made.answered == 0


def test_the_first_answer_counts_and_the_others_may_be_looked_at() -> None:
    made = lk.quiz([SMALL, QUESTIONS[0]])
    first = made.asked[0]
    first.control.value = "no <b>"
    first.button.click()
    assert "Count &lt;again&gt;." in first.said.value and made.score == 0 and made.answered == 1
    first.control.value = "yes"
    first.button.click()
    assert "It <em>is</em>." in first.said.value and made.score == 0
    made.answer(2, QUESTIONS[0].right.text)
    assert made.score == 1 and made.status.value.count("1 of 2 questions right at the first try.") == 1


def test_every_button_has_a_name_of_its_own_and_what_is_told_is_announced() -> None:
    made = lk.quiz()
    names = [it.button.description for it in made.asked]
    assert len(set(names)) == len(names) == len({it.control.tooltip for it in made.asked})
    assert all('role="status"' in it.said.value for it in made.asked) and 'role="status"' in made.status.value


def test_paper_and_plain_viewers_get_the_questions_with_the_reasons_folded_away() -> None:
    data, _ = DisplayFormatter().format(lk.quiz([SMALL]))
    assert data["text/plain"] == "Quiz: 1 question"
    shown = data["text/html"]
    assert "Is 1 &lt; 2 <em>always</em>?" in shown and "no &lt;b&gt;" in shown
    assert shown.index("<details>") < shown.index("It <em>is</em>.") and "</details>" in shown
    again, _ = DisplayFormatter().format(lk.quiz([SMALL]))
    assert again["text/html"] == shown  # nothing that changes from run to run
