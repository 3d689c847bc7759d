"""Prediction: a number or a choice that is locked in before the measured one is shown beside it.

`compute()` is the pure part: what was predicted, what was measured, and by how much it missed. The first lock of a
question stands for good; whatever is changed later is shown as a change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as widgets

from labkit.accessible import Names
from labkit.checks import number as a_number, one_of
from labkit.classroom.posting import lesson, post
from labkit.errors import SettingError
from labkit.plots.panel import Panel, Picture
from labkit.plots.style import ALARM, CYCLE, FAINT, GREY, INK
from labkit.text import short
from labkit.translation.translate import tr
from labkit.widgets import calibration
from labkit.widgets.buttons import on_press
from labkit.widgets.calibration import Answer, Record, missed_by, number, with_unit


@dataclass(frozen=True)
class Scale:
    """What may be answered: a number from `low` to `high` in steps, or one of `choices`."""

    low: float = 0.0
    high: float = 1.0
    step: float = 0.01
    unit: str = ""
    log: bool = False
    choices: tuple[str, ...] = ()

    def taken(self, answer: Any, name: str) -> Answer:
        """The answer as a number or as one of the choices; SettingError for what is neither."""
        if self.choices:
            return one_of(answer, name, self.choices)
        real = float(answer.item() if hasattr(answer, "item") else answer) if _is_number(answer) else math.nan
        if not math.isfinite(real):
            raise SettingError(f"{name} is {answer!r}; give a finite number, in {self.unit or 'the question'}'s unit.")
        return real


def _is_number(answer: Any) -> bool:
    try:
        float(answer)
    except (TypeError, ValueError):
        return False
    return not isinstance(answer, str | bool)


@dataclass(frozen=True)
class Outcome:
    """A prediction beside the measured answer; `locked` is False where nobody locked one in."""

    question: str
    scale: Scale
    said: Answer
    measured: Answer
    changes: tuple[Answer, ...] = ()
    locked: bool = True
    how: str = "measured"

    @property
    def sentence(self) -> str:
        """Both answers, by how much the first one missed, and what it was changed to."""
        said, unit = with_unit(self.said, self.scale.unit), self.scale.unit
        who = f"You predicted {said}" if self.locked else f"Nobody locked in a prediction, which stood at {said}"
        missed = Record(self.question, unit, said=self.said, measured=self.measured).verdict
        text = f"{who}; {self.how}: {with_unit(self.measured, unit)}. That is {missed}."
        if self.changes:
            text += f" Changed later to {', '.join(with_unit(it, unit) for it in self.changes)}; the first one counts."
        return text


def compute(
    question: str,
    said: Answer,
    measured: Answer,
    *,
    unit: str = "",
    low: float = 0.0,
    high: float = 1.0,
    choices: Sequence[str] = (),
) -> Outcome:
    """What a prediction says beside the measured answer.

    >>> print(compute("How many times as fast?", 2.0, 1.6, unit="×", high=4).sentence)
    You predicted 2 ×; measured: 1.6 ×. That is 25 % too high.
    """
    return Outcome(question, Scale(low, high, unit=unit, choices=tuple(choices)), said, measured)


def predict(
    question: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    start: Answer | None = None,
    step: float | None = None,
    log: bool = False,
    choices: Sequence[str] = (),
) -> Guess:
    """Ask for a prediction: a slider from `low` to `high` in `unit`, or one of `choices`, and a button to lock it in.

    It begins at `start` (the middle, or the first choice) and moves by `step` (whole numbers where both ends are
    whole); `log` spaces numbers by their ratio. `guess.reveal(measured)` then shows both. The first lock counts, also
    after the cell was run again or the kernel restarted. Raises SettingError for a scale that is none.

    >>> guess = predict("How many times as fast are two workers?", unit="×", low=0.5, high=4)
    >>> print(guess.reveal(1.8).sentence)
    Nobody locked in a prediction, which stood at 2.25 ×; measured: 1.8 ×. That is 25 % too high.
    """
    if not isinstance(question, str) or not question.strip():
        raise SettingError("A prediction needs a question: give it in words, first of all.")
    if choices:
        if isinstance(choices, str) or len(set(choices)) < 2 or not all(isinstance(it, str) for it in choices):
            raise SettingError(f"choices={choices!r}; give at least two different answers in words.")
        scale = Scale(unit=unit, choices=tuple(dict.fromkeys(choices)))
        return Guess(question, scale, scale.taken(scale.choices[0] if start is None else start, "start"))
    if low is None or high is None:
        raise SettingError("Give the prediction a scale: low= and high=, or choices=.")
    least, most = a_number(low, "low", least=-math.inf), a_number(high, "high", least=-math.inf)
    if most <= least or (log and least <= 0):
        raise SettingError(f"The scale runs from {least:g} to {most:g}; give low < high{', above zero' * log}.")
    whole = isinstance(low, int) and isinstance(high, int)
    by = _nice(most - least, whole) if step is None else a_number(step, "step", above=True)
    scale = Scale(least, most, by, unit, log)
    middle = math.sqrt(least * most) if log else least + round((most - least) / 2 / by) * by
    begin = scale.taken(middle if start is None else start, "start")
    if not isinstance(begin, str) and not least <= begin <= most:
        raise SettingError(f"start is {begin:g}; give a number from {least:g} to {most:g}.")
    return Guess(question, scale, begin)


def _nice(span: float, whole: bool) -> float:
    """A step of 1, 2 or 5 times a power of ten, about a hundred of them in the span."""
    power: float = 10.0 ** math.floor(math.log10(span / 100))
    by = next(k * power for k in (1, 2, 5, 10) if span / (k * power) <= 101)
    return max(1.0, by) if whole else by


class Guess(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """A question with a slider or choices and a button; `reveal` shows the answer beside what was locked in."""

    def __init__(self, question: str, scale: Scale, start: Answer) -> None:
        self.question, self.scale = question, scale
        self._kept, self._reveals = True, list[Reveal]()
        self.record = calibration.records().get(question)
        if self.record is not None:
            start = _nearest(self.record, scale, start)
        self.control = _control(scale, start)
        self.button = widgets.Button(button_style="primary", layout=widgets.Layout(width="auto"))
        on_press(self.button, self._pressed)
        self.status = widgets.HTML()
        self._changing = False
        asked = f"<b>{tr('Your prediction.')}</b> {escape(question)}"
        heading = widgets.HTML(f'<div style="line-height:1.5">{asked}</div>')
        row = [self.control, widgets.Label(tr(scale.unit)), self.button] if scale.unit else [self.control, self.button]
        wrap = widgets.Layout(flex_flow="row wrap", align_items="center", max_width="816px")
        super().__init__([heading, widgets.HBox(row, layout=wrap), self.status, Names()])
        self._refresh()

    @property
    def locked(self) -> bool:
        """Whether a prediction is locked in."""
        return self.record is not None

    @property
    def said(self) -> Answer:
        """The prediction that counts: the first that was locked in, or where the control stands."""
        if self.record is not None and self.record.said is not None:
            return self.record.said
        value: Answer = self.control.value
        return value

    def lock(self, answer: Answer | None = None) -> None:
        """Lock in an answer, or the one that the control shows, as the button does; a later one is a change."""
        given = self.scale.taken(self.control.value if answer is None else answer, "your prediction")
        if self.record is None:
            self.record = Record(self.question, self.scale.unit, lesson(), given)
            self._write("locked", given)
        elif given != [self.record.said, *self.record.changes][-1]:
            self.record.changes.append(given)
            self._write("changed", given)
        if answer is not None and not self.scale.choices:
            self.control.value = min(max(float(given), self.scale.low), self.scale.high)
        elif answer is not None:
            self.control.value = given
        self._changing = False
        self._refresh()

    def reveal(self, measured: Answer, *, how: str = "measured") -> Reveal:
        """Show the prediction beside the `measured` answer, once it is locked in; `how` says where that comes from.

        Raises SettingError for an answer that is no finite number, or none of the choices.
        """
        shown = Reveal(self, self.scale.taken(measured, "measured"), how)
        self._reveals.append(shown)
        return shown

    def outcome(self, measured: Answer, how: str) -> Outcome:
        """The prediction as it stands beside a measured answer."""
        changes = tuple(self.record.changes) if self.record else ()
        return Outcome(self.question, self.scale, self.said, measured, changes, self.locked, how)

    def note(self, measured: Answer) -> None:
        """Keep the measured answer beside what was locked in, the first time."""
        if self.record is not None and self.record.measured is None:
            self.record.measured = measured
            self._write("measured", measured)

    def _write(self, event: str, value: Answer) -> None:
        known = {"event": event, "question": self.question, "value": value}
        if event == "locked":
            known |= {"unit": self.scale.unit, "lesson": lesson()}
        self._kept = calibration.write(known) and self._kept
        if event == "locked":
            post(known)  # to the class board, where there is one

    def _pressed(self) -> None:
        if self.locked and not self._changing:
            self._changing = True
            self._refresh()
        else:
            self.lock()

    def _refresh(self) -> None:
        self.control.disabled = self.locked and not self._changing
        self.button.button_style = "" if self.locked else "primary"
        if not self.locked:
            self.button.description, said = tr("Lock it in"), "Nothing is locked in yet."
        else:
            self.button.description = tr("Lock in the change" if self._changing else "Change it")
            said = f"Locked in: {with_unit(self.said, self.scale.unit)}."
            if self.record and self.record.changes:
                changes = ", ".join(with_unit(it, self.scale.unit) for it in self.record.changes)
                said += f" Changed later to {changes}; the first one counts."
            if not self._kept:
                said += " It cannot be kept longer than this kernel lives: your data folder cannot be written to."
        self.status.value = f'<div role="status" style="line-height:1.5">{escape(tr(said))}</div>'
        for shown in self._reveals:
            shown.refresh()

    def __repr__(self) -> str:
        return f"Prediction: {self.question}"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return dict(super()._repr_mimebundle_(**kwargs) or {}) | {"text/plain": repr(self)}, {}


class Reveal(widgets.VBox):  # type: ignore[misc]
    """The prediction beside the measured answer, drawn; it waits until a prediction is locked in.

    Where no widget is shown (an export, a plain viewer) its picture shows both, with the prediction as it stood.
    """

    def __init__(self, guess: Guess, measured: Answer, how: str) -> None:
        self.guess, self.measured, self.how = guess, measured, how
        self.button = widgets.Button(description=tr("Lock it in and look"), button_style="primary")
        self.button.layout.width = "auto"
        on_press(self.button, guess.lock)
        self.picture, self.said = widgets.HTML(), widgets.HTML()
        super().__init__()
        self.refresh()

    @property
    def outcome(self) -> Outcome:
        """What is shown: the prediction as it stands now, and the measured answer."""
        return self.guess.outcome(self.measured, self.how)

    @property
    def sentence(self) -> str:
        """Both answers and by how much the prediction missed, in words."""
        return self.outcome.sentence

    def refresh(self) -> None:
        """Show what there is to show now."""
        if self.guess.locked:
            self.guess.note(self.measured)
            self.picture.value = calibration.picture_tag(draw(self.outcome))
            said, self.children = self.sentence, (self.picture, self.said)
        else:
            said = "The measured answer is here. Lock in your prediction first, with the button above or with this one."
            self.children = (self.said, self.button)
        self.said.value = f'<div role="status" style="line-height:1.5">{escape(tr(said))}</div>'

    def __repr__(self) -> str:
        return f"Prediction and {self.how}: {self.guess.question}"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        drawn, told = draw(self.outcome)._repr_mimebundle_()
        return dict(super()._repr_mimebundle_(**kwargs) or {}) | drawn | {"text/plain": repr(self)}, told


def _control(scale: Scale, start: Answer) -> widgets.Widget:
    if scale.choices:
        return widgets.RadioButtons(options=scale.choices, value=start, layout=widgets.Layout(width="max-content"))
    wide = {"layout": widgets.Layout(width="440px"), "tooltip": tr("Your prediction")}
    if scale.log:
        low, high = math.log10(scale.low), math.log10(scale.high)
        return widgets.FloatLogSlider(start, min=low, max=high, step=(high - low) / 100, readout_format=".3g", **wide)
    digits = max(0, -math.floor(math.log10(scale.step)))
    form = {"min": scale.low, "max": scale.high, "step": scale.step, "readout_format": f".{digits}f"}
    return widgets.FloatSlider(start, **form, **wide)


def _nearest(record: Record, scale: Scale, start: Answer) -> Answer:
    """What was said last, as the control can show it; `start` where the question has other answers by now."""
    last = [record.said, *record.changes][-1]
    if scale.choices:
        return last if last in scale.choices and isinstance(last, str) else start
    return start if isinstance(last, str) or last is None else min(max(float(last), scale.low), scale.high)


# -- The picture


def draw(made: Outcome) -> Picture:
    """The prediction (a diamond in outline) beside the measured answer (solid), with the gap between them."""
    panel = _choices(made) if made.scale.choices else _numbers(made)
    panel.legend([(INK, True, "your prediction"), (CYCLE[0], False, made.how)])
    return panel.finish(f"{made.question} {tr(made.sentence)}")


def _numbers(made: Outcome) -> Panel:
    scale = made.scale
    values = [float(it) for it in (scale.low, scale.high, made.said, made.measured, *made.changes)]
    log = scale.log and min(values) > 0
    place = math.log10 if log else float
    low, high = place(min(values)), place(max(values))
    first = "your prediction" if made.locked else "not locked in"
    rows = [(first, made.said), *[("changed to", it) for it in made.changes], (made.how, made.measured)]
    end, pad = len(rows) - 1, 0.04 * (high - low)
    panel = Panel(0.42 * len(rows), (low - pad, high + pad), (end + 0.5, -0.5), title=_title(made), left=1.25)
    panel.rows([name for name, _ in rows])
    marks = [(float(k), number(10.0**k)) for k in range(math.ceil(low), math.floor(high) + 1)] if log else None
    panel.x_axis(scale.unit, marks)
    said, measured = place(float(made.said)), place(float(made.measured))
    panel.lines([[(low, row), (high, row)] for row in range(len(rows))], colors=FAINT, linewidths=1.2, zorder=1)
    panel.lines([[(said, 0), (said, end)]], colors=GREY, linewidths=0.8, linestyles="dotted", zorder=2)
    panel.lines([[(said, end), (measured, end)]], colors=ALARM, linewidths=2.0, zorder=3)
    for row, (_, value) in enumerate(rows):
        _diamond(panel, place(float(value)), row, solid=row == end)
        right = place(float(value)) < (low + high) / 2
        words = with_unit(value, scale.unit)
        if row == end:
            words += f"  (you: {missed_by(float(made.said), float(made.measured), scale.unit)})"
        panel.word(words, place(float(value)), row, dx=9 if right else -9, dy=8, align="left" if right else "right")
    return panel


def _choices(made: Outcome) -> Panel:
    rows = made.scale.choices
    left = min(4.5, 0.4 + 0.075 * max(map(len, rows)))
    panel = Panel(0.28 * len(rows), (0.0, 3.0), (len(rows) - 0.5, -0.5), title=_title(made), left=left, bottom=0.15)
    panel.rows([short(it, 60).strip("'\"") for it in rows])
    for row, choice in enumerate(rows):
        panel.lines([[(0.0, row), (3.0, row)]], colors=FAINT, linewidths=1.2, zorder=1)
        if choice == made.said:
            _diamond(panel, 0.25, row, solid=False)
        if choice in made.changes:
            panel.word("changed to this", 0.5, row, colour=GREY)
        if choice == made.measured:
            _diamond(panel, 1.25, row, solid=True)
            panel.word("right" if choice == made.said else made.how, 1.35, row, dx=4)
    return panel


def _title(made: Outcome) -> str:
    return short(made.question, 96).strip("'\"")


def _diamond(panel: Panel, x: float, y: float, *, solid: bool) -> None:
    face = CYCLE[0] if solid else "white"
    style: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": CYCLE[0] if solid else INK}
    panel.ax.plot([x], [y], marker="D", markersize=8, markeredgewidth=1.6, clip_on=False, zorder=4, **style)
