"""Calibration: what a learner has predicted in all lessons, beside what was measured, from a small file of theirs.

The file lies in the user's data folder, for this user alone, a line of JSON for each thing that happened: locked,
changed, measured. Lines are only ever added, so that several open notebooks may write at once, and the first lock of a
question stays the first.
"""

from __future__ import annotations

import json
import math
import os
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from labkit.plots.panel import Panel, Picture
from labkit.plots.style import CYCLE, FAINT, GREY, INK
from labkit.text import Table, plural, short
from labkit.translation.translate import tr

Answer = float | str  # a number, or one of several choices
_unwritten: list[dict[str, Any]] = []  # where there is no folder to write to, this kernel remembers
_WIDEST = 8.0  # times too high or too low, at the ends of the picture's axis


@dataclass
class Record:
    """One question: what was locked in first, what it was changed to later, and what was measured."""

    question: str
    unit: str = ""
    lesson: str = ""
    said: Answer | None = None
    changes: list[Answer] = field(default_factory=list)
    measured: Answer | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as high as the measured number the first prediction was; None where that means nothing."""
        said, measured = self.said, self.measured
        if isinstance(said, str) or isinstance(measured, str) or said is None or measured is None:
            return None
        return said / measured if said > 0 and measured > 0 else None

    @property
    def verdict(self) -> str:
        """In a word or a few: right, too high, too low, or not measured yet."""
        if self.measured is None or self.said is None:
            return "not measured yet"
        if isinstance(self.said, str) or isinstance(self.measured, str):
            return "right" if self.said == self.measured else "wrong"
        return missed_by(self.said, self.measured, self.unit)


def missed_by(said: float, measured: float, unit: str = "") -> str:
    """By how much a number misses the measured one, in words; up to 5 % is right.

    >>> missed_by(2.0, 1.96), missed_by(2.0, 1.6), missed_by(9.0, 1.8), missed_by(25, 52, "%"), missed_by(1, -1)
    ('right, to within 5 %', '25 % too high', '5 times too high', '27 points too low', '2 too high')
    """
    way = "too high" if said > measured else "too low"
    if said == measured:
        return "exactly right"
    if abs(said - measured) <= 0.05 * abs(measured):
        return "right, to within 5 %"
    if unit == "%":
        return f"{number(abs(said - measured))} points {way}"
    if said > 0 and measured > 0:
        ratio = max(said, measured) / min(said, measured)
        if ratio >= 2:
            return f"{number(ratio)} times {way}"
        return f"{abs(said - measured) / measured:.0%} {way}".replace("%", " %")
    return f"{with_unit(abs(said - measured), unit)} {way}"


def number(value: float) -> str:
    """A number to three digits.

    >>> number(1.96349), number(25997)
    ('1.96', '26,000')
    """
    return f"{float(f'{value:.3g}'):,g}" if abs(value) < 1e6 else f"{value:.3g}"


def with_unit(answer: Answer, unit: str) -> str:
    """A number with its unit, or a choice as it stands.

    >>> with_unit(2.0, "×"), with_unit("equal", "")
    ('2 ×', 'equal')
    """
    return answer if isinstance(answer, str) else f"{number(answer)} {unit}".strip()


# -- The file


def path() -> Path:
    """Where the predictions of this user are kept."""
    from platformdirs import user_data_path

    return user_data_path("labkit", appauthor=False) / "predictions.jsonl"


def write(event: dict[str, Any]) -> bool:
    """Add one line; False where it cannot be kept longer than this kernel lives."""
    line = json.dumps(event, allow_nan=False, ensure_ascii=False)
    try:
        path().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, f"{line}\n".encode())  # at once, so that lines of two kernels do not mix
        finally:
            os.close(file)
    except OSError:
        _unwritten.append(event)
        return False
    return True


def _events() -> Iterator[dict[str, Any]]:
    with suppress(OSError):
        for line in path().read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):  # a line that its writer did not live to finish
                event = json.loads(line)
                if isinstance(event, dict) and isinstance(event.get("question"), str):
                    yield event
    yield from _unwritten


def records() -> dict[str, Record]:
    """Every question that was ever locked in, in the order of the first lock."""
    found: dict[str, Record] = {}
    for event in _events():
        value = event.get("value")
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            continue
        question, what = event["question"], event.get("event")
        if what == "locked" and question not in found:
            found[question] = Record(question, str(event.get("unit", "")), str(event.get("lesson", "")), value)
        elif what in ("locked", "changed") and question in found:
            found[question].changes.append(value)
        elif what == "measured" and question in found and found[question].measured is None:
            found[question].measured = value
    return found


# -- What they say together


@dataclass(frozen=True, repr=False)
class Predictions:
    """All predictions of one learner, the first one of each question, beside what was measured.

    >>> Predictions([Record("How many times as fast?", "×", "00_start_here", 2.0, measured=1.6)])
    lesson         question                 you  measured    so you were
    00_start_here  How many times as fast?  2 ×     1.6 ×  25 % too high
    1 prediction in 1 lesson. 1 of 1 numbers lie within a quarter; on the whole you are 1.25 times too high.
    """

    records: Sequence[Record]

    @property
    def sentence(self) -> str:
        """How well this learner predicts, and whether too high or too low on the whole."""
        known = [it for it in self.records if it.measured is not None]
        if not known:
            return "No prediction has met its measurement yet: lock one in, and run the lesson to its end."
        lessons = len({it.lesson for it in known})
        said = [f"{len(known)} {plural('prediction', len(known))} in {lessons} {plural('lesson', lessons)}."]
        ratios = np.array([it.ratio for it in known if it.ratio is not None])
        if len(ratios):
            near = int((np.maximum(ratios, 1 / ratios) <= 1.25).sum())
            middle = float(np.exp(np.mean(np.log(ratios))))
            bias = "neither too high nor too low"
            if not 0.95 <= middle <= 1.05:
                bias = f"{number(max(middle, 1 / middle))} times too {'high' if middle > 1 else 'low'}"
            said.append(f"{near} of {len(ratios)} numbers lie within a quarter; on the whole you are {bias}.")
        choices = [it for it in known if isinstance(it.measured, str)]
        if choices:
            said.append(f"{sum(it.verdict == 'right' for it in choices)} of {len(choices)} choices are right.")
        return " ".join(said)

    @property
    def table(self) -> Table:
        """A row for each question."""
        rows = [
            [it.lesson or "–", short(it.question, 60).strip("'\""), _shown(it.said, it.unit),
             _shown(it.measured, it.unit), tr(it.verdict)]
            for it in self.records
        ]  # fmt: skip
        return Table([tr(it) for it in ("lesson", "question", "you", "measured", "so you were")], rows, left=2)

    def plot(self) -> Picture:
        """How many times too high or too low each number was; the line in the middle is right."""
        rows, end = list(self.records), math.log2(_WIDEST)
        height = max(0.5, 0.26 * len(rows))
        panel = Panel(height, (-end, end), (len(rows) - 0.5, -0.5), title="Your predictions", left=3.1)
        marks = [(float(k), f"{2**k}×" if k > 0 else f"1/{2**-k}") for k in (-3, -2, -1, 1, 2, 3)]
        panel.x_axis("too low  ·  too high", sorted([*marks, (0.0, "right")]))
        panel.lines([[(0, -0.5), (0, len(rows) - 0.5)]], colors=INK, linewidths=1.4, zorder=2)
        panel.rows([f"{it.lesson[:2]} {short(it.question, 44)}".replace("'", "").strip() for it in rows])
        for row, it in enumerate(rows):
            if it.ratio is None:
                panel.word(it.verdict, 0.0, row, dx=8, colour=GREY)
                continue
            at = min(end, max(-end, math.log2(it.ratio)))
            panel.lines([[(0.0, row), (at, row)]], colors=FAINT, linewidths=4, zorder=1)
            panel.ax.plot([at], [row], marker="D", color=CYCLE[0], markersize=7, clip_on=False, zorder=4)
        return panel.finish(f"Your predictions over the measured numbers. {self.sentence}")

    def forget(self) -> None:
        """Delete the file: every question can be locked in anew."""
        _unwritten.clear()
        path().unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"{self.table}\n{self.sentence}" if self.records else self.sentence

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        if not self.records:
            return {"text/plain": repr(self)}, {}
        picture, table = picture_tag(self.plot()), self.table._repr_html_()
        return {"text/html": f"{picture}{table}<p>{escape(tr(self.sentence))}</p>", "text/plain": repr(self)}, {}


def picture_tag(picture: Picture) -> str:
    """A picture in HTML, with what it shows in words for whoever cannot see it."""
    data = b64encode(picture.png()).decode("ascii")
    look = "max-width:100%;width:792px"
    return f'<img alt="{escape(picture.alt)}" src="data:image/png;base64,{data}" style="{look}">'


def _shown(answer: Answer | None, unit: str) -> str:
    return "–" if answer is None else with_unit(answer, unit)


def predictions() -> Predictions:
    """What you have predicted in all lessons so far, beside what was measured: are you too high, or too low?

    It is read from a small file in your own data folder; `.forget()` deletes it. Nothing is kept of what was not locked
    in.

    >>> mine = predictions()
    >>> len(mine.records) == len(mine.table.rows)
    True
    """
    return Predictions(list(records().values()))
