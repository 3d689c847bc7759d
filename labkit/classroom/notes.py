"""Notes: what the class board knows: predictions, checks passed, and at which lesson somebody is; in memory alone."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

VOTERS = 3
"""Below so many voices a histogram would tell who said what."""
_BARS = 10
_LONG = 300  # characters of a question, a choice or a name
_MOST = 500  # questions, or exercises
_OF_EACH = 50  # that one student may be the first to name: nobody fills the board for all
_SIZES = 1e-100, 1e100  # beyond which the width of a histogram's bar is no number


@dataclass
class Notes:
    """What students have told; the first prediction of each counts."""

    said: dict[str, dict[str, float | str]] = field(default_factory=dict)  # question -> student -> prediction
    units: dict[str, str] = field(default_factory=dict)
    passed: dict[str, set[str]] = field(default_factory=dict)  # exercise -> students
    lessons: dict[str, str] = field(default_factory=dict)  # student -> lesson
    _named: Counter[str] = field(default_factory=Counter)  # student -> questions and exercises they were first to name
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, student: str, event: Any) -> bool:
        """Take one note; False for what is none."""
        if not isinstance(event, dict):
            return False
        with self._lock:
            kept = self._take(student, event)
            lesson = event.get("lesson")
            if kept and isinstance(lesson, str) and 0 < len(lesson) <= _LONG:
                self.lessons[student] = lesson
        return kept

    def _take(self, student: str, event: dict[str, Any]) -> bool:
        name, value = event.get("question", event.get("exercise")), event.get("value")
        if not isinstance(name, str) or not 0 < len(name) <= _LONG:
            return False
        known = self.said if event.get("event") == "locked" else self.passed
        new = name not in known
        if new and (len(known) >= _MOST or self._named[student] >= _OF_EACH):
            return False
        if event.get("event") == "passed":
            self._named[student] += new
            self.passed.setdefault(name, set()).add(student)
            return True
        text = isinstance(value, str) and len(value) <= _LONG
        number = isinstance(value, int | float) and not isinstance(value, bool) and _drawn(value)
        if event.get("event") != "locked" or not (text or number):
            return False
        assert isinstance(value, int | float | str)
        self._named[student] += new
        self.said.setdefault(name, {}).setdefault(student, value)
        self.units.setdefault(name, str(event.get("unit", ""))[:20])
        return True

    def shown(self, names: bool = False) -> dict[str, Any]:
        """What the board shows: histograms from three voters on; with `names`, for teachers, who is where."""
        with self._lock:
            questions = [
                {"question": it, "voters": len(said), "bars": bars(list(said.values())) if len(said) >= VOTERS else [],
                 "unit": self.units.get(it, "")}
                for it, said in reversed(self.said.items())
            ]  # fmt: skip
            lessons = Counter(self.lessons.values())
            state = {
                "questions": questions,
                "passed": {it: len(students) for it, students in sorted(self.passed.items())},
                "lessons": dict(sorted(lessons.items())),
            }
            return state | ({"who": dict(sorted(self.lessons.items()))} if names else {})


def _drawn(value: float) -> bool:
    """Whether a number fits a histogram, beside whichever others."""
    return value == 0 or _SIZES[0] < abs(value) < _SIZES[1]


def bars(values: list[float | str]) -> list[tuple[str, int]]:
    """A histogram: what each bar holds, in words, and how many.

    >>> bars(["a", "b", "a"]), bars([1.0, 1.0, 2.0])[0], bars([2, 2, 2])
    ([('a', 2), ('b', 1)], ('1–1.1', 2), [('2', 3)])
    """
    numbers = [float(it) for it in values if not isinstance(it, str)]
    if len(numbers) < len(values):
        return Counter(str(it) for it in values).most_common()
    low, high = min(numbers), max(numbers)
    if low == high:
        return [(f"{low:g}", len(numbers))]
    width = (high - low) / _BARS
    places = Counter(min(_BARS - 1, int((it - low) / width)) for it in numbers)
    return [(f"{low + k * width:.3g}–{low + (k + 1) * width:.3g}", places[k]) for k in range(_BARS)]
