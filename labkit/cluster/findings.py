"""Findings: what a doctor has looked at, each with its remedy, as one report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from labkit.cluster.display import Markup, table, widget_view
from labkit.text import BAD, GOOD, MIND, in_words

_MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
_COLOURS = {"ok": GOOD, "warn": MIND, "fail": BAD}


class Check(NamedTuple):
    """One finding: "warn" works with less, "fail" does not work; `remedy` is empty where all is well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def looked(
    name: str, examine: Callable[[], Check], remedy: str = "look at what else this machine does, and try again."
) -> Check:
    """What is found; that nothing can be found out, whatever the reason, is a finding too."""
    try:
        return examine()
    except Exception as error:  # noqa: BLE001
        return Check(name, "fail", f"no answer ({in_words(error)})", remedy)


@dataclass(frozen=True)
class Report:
    """All findings; prints as a table."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(check.status != "fail" for check in self.checks)

    @property
    def summary(self) -> str:
        """One line that says nothing about the machine, only whether labkit works on it."""
        failed = self._of("fail")
        state = f"not well: {', '.join(failed)}" if failed else "labkit works here"
        return f"labkit doctor: {len(self.checks)} checks, {state}"

    @property
    def headline(self) -> str:
        """The summary, and on what to look at it works with less."""
        less = self._of("warn")
        return f"{self.summary}; look at {', '.join(less)}" if less else self.summary

    def _of(self, status: str) -> list[str]:
        return [check.name for check in self.checks if check.status == status]

    def __repr__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [self.headline]
        for check in self.checks:
            lines.append(f"{_MARKS[check.status]} {check.name:<{width}}  {check.found}")
            if check.remedy:
                lines.append(f"  {'':<{width}}  → {check.remedy}")
        return "\n".join(lines)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        columns = 4 if any(check.remedy for check in self.checks) else 3
        head = ("", "what", "found", "remedy")[:columns]
        rows = [(_mark(check.status), check.name, check.found, check.remedy)[:columns] for check in self.checks]
        return widget_view(table(self.headline, "", head, rows), self.summary)


def _mark(status: str) -> Markup:
    return Markup(f'<b title="{status}" style="color:{_COLOURS[status]}">{_MARKS[status]}</b>')
