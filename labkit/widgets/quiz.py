"""Quiz: questions with answers to choose from, and for each answer, right or wrong, why it is that.

`compute()` is the pure part: what an answer is told. The first answer to a question counts; who has it may look at the
others, too, and read why they are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as widgets

from labkit.accessible import Names
from labkit.cards.lessons import LESSONS, titled
from labkit.cards.questions import QUESTIONS, Choice, Question
from labkit.checks import one_of
from labkit.errors import SettingError
from labkit.text import some
from labkit.translation.translate import tr
from labkit.widgets.buttons import on_press

# ipywidgets keeps radio buttons on one line each; answers are sentences.
_WRAP = (
    ".labkit-quiz .widget-radio{width:100%}"
    ".labkit-quiz .widget-radio-box{max-width:100%}"
    ".labkit-quiz .widget-radio-box label{white-space:normal;height:auto;line-height:1.45;margin-bottom:4px;"
    "padding-left:24px;position:relative}"
    ".labkit-quiz .widget-radio-box input{position:absolute;left:2px;top:1px;margin:0}"
)


@dataclass(frozen=True)
class Told:
    """What is said of an answer: whether it is right, why, and the lesson that shows it."""

    right: bool
    why: str
    lesson: int

    @property
    def sentence(self) -> str:
        """All of it in words."""
        return f"{'✓ Right' if self.right else '✗ Not so'}. {self.why} Shown in lesson {titled(self.lesson)}."

    @property
    def html(self) -> str:
        """The same with a link to the lesson."""
        link = f'<a href="{LESSONS[self.lesson]}" target="_blank">{escape(tr(f"lesson {titled(self.lesson)}"))}</a>'
        verdict = tr("✓ Right." if self.right else "✗ Not so.")
        shown = tr("Shown in ¶.").replace("¶", link)
        return f"<b>{verdict}</b> {_marked(tr(self.why))} {shown}"


def compute(question: Question, answer: str) -> Told:
    """What is to be said of one of a question's answers. Raises SettingError for what is none of them.

    >>> compute(QUESTIONS[6], "The intersection grows as fast as the slowest worker").right
    True
    """
    one_of(answer, "answer", tuple(it.text for it in question.choices))
    chosen = next(it for it in question.choices if it.text == answer)
    return Told(chosen.right, chosen.why, question.lesson)


def quiz(questions: Sequence[Question] = QUESTIONS) -> Quiz:
    """Questions to answer, by default those on the whole course; each answer is told why it is right or wrong.

    Raises SettingError where there are no questions.

    >>> both = quiz()
    >>> both.answer(1, both.questions[0].right.text).right, both.score
    (True, 1)
    """
    given = tuple(questions)
    if not given or not all(isinstance(it, Question) for it in given):
        raise SettingError(
            "A quiz needs questions: give a list of labkit.cards.questions.Question, or nothing for the course's own."
        )
    return Quiz(given)


class Quiz(widgets.VBox):  # type: ignore[misc]
    """Questions one below the other; `score` is how many were right at the first try."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = tuple(questions)
        self.asked = [_Asked(number, it, self._refresh) for number, it in enumerate(self.questions, start=1)]
        self.status = widgets.HTML()
        super().__init__([widgets.HTML(f"<style>{_WRAP}</style>"), *self.asked, self.status, Names()])
        self.add_class("labkit-quiz")
        self._refresh()

    @property
    def score(self) -> int:
        """How many questions were answered right at the first try."""
        return sum(it.first is not None and it.first.right for it in self.asked)

    @property
    def answered(self) -> int:
        """How many questions were answered at all."""
        return sum(it.first is not None for it in self.asked)

    def answer(self, number: int, text: str) -> Told:
        """Answer question `number`, counted from 1, as its button does. SettingError where there is no such answer."""
        if number not in range(1, len(self.asked) + 1):
            raise SettingError(f"There is no question {number!r}: give a number from 1 to {len(self.asked)}.")
        return self.asked[number - 1].answer(text)

    def _refresh(self) -> None:
        said = f"{self.score} of {some(len(self.asked), 'question')} right at the first try"
        left = len(self.asked) - self.answered
        said += f", {left} not answered yet." if left else "."
        self.status.value = f'<div role="status" style="line-height:1.5"><b>{tr(said)}</b></div>'

    def __repr__(self) -> str:
        return f"Quiz: {some(len(self.questions), 'question')}"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        shown = dict(super()._repr_mimebundle_(**kwargs) or {})
        return shown | {"text/html": _printed(self.questions), "text/plain": repr(self)}, {}


class _Asked(widgets.VBox):  # type: ignore[misc]
    """One question: its answers, the button, and what was said of the answer."""

    def __init__(self, number: int, question: Question, answered: Any) -> None:
        self.number, self.question, self._answered = number, question, answered
        self.first: Told | None = None
        texts = [(tr(it.text), it.text) for it in question.choices]
        wide = widgets.Layout(width="auto", max_width="792px")
        self.control = widgets.RadioButtons(
            options=texts, value=None, layout=wide, tooltip=tr(f"Answers to question {number}")
        )
        self.button = widgets.Button(
            description=tr(f"Answer question {number}"),
            button_style="primary",
            layout=widgets.Layout(width="max-content"),
        )
        on_press(self.button, self._pressed)
        self.said = widgets.HTML(layout=widgets.Layout(max_width="792px"))
        heading = f'<div style="line-height:1.5"><b>{number}.</b> {_marked(tr(question.text))}</div>'
        children = [widgets.HTML(heading, layout=wide), self.control, self.button, self.said]
        super().__init__(children, layout=widgets.Layout(margin="0 0 18px 0"))
        self._say("")

    def answer(self, text: str) -> Told:
        """Choose an answer and press the button."""
        told = compute(self.question, text)
        self.control.value = text
        self.first = self.first or told
        self.button.button_style = "" if told.right else "primary"
        self._say(told.html)
        self._answered()
        return told

    def _pressed(self) -> None:
        if self.control.value is None:
            self._say(tr("Choose one of the answers first."))
        else:
            self.answer(self.control.value)

    def _say(self, html: str) -> None:
        self.said.value = f'<div role="status" style="line-height:1.5">{html}</div>'


def _marked(text: str) -> str:
    """Words with *emphasis* as HTML."""
    pieces = escape(text).split("*")
    return "".join(f"<em>{it}</em>" if k % 2 else it for k, it in enumerate(pieces))


def _printed(questions: Sequence[Question]) -> str:
    """The questions where no widget is shown (paper, a plain viewer), what is to be said of each answer folded away."""

    def line(it: Choice) -> str:
        return f"<li>{_marked(tr(it.text))}<br>{'✓' if it.right else '✗'} {_marked(tr(it.why))}</li>"

    parts = []
    for number, it in enumerate(questions, start=1):
        options = "".join(f"<li>{_marked(tr(choice.text))}</li>" for choice in it.choices)
        told = "".join(map(line, it.choices))
        parts.append(
            f"<p><b>{number}.</b> {_marked(tr(it.text))}</p><ul>{options}</ul>"
            f"<details><summary>{tr('What to say of each answer')}</summary><ul>{told}</ul>"
            f"{escape(tr(f'Shown in lesson {titled(it.lesson)}.'))}</details>"
        )
    return "".join(parts)
