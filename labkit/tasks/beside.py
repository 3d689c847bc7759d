"""Two schedules or two timelines in one picture: which one stands above, and what each is called."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from labkit.plots import duration


class Timed(Protocol):
    """What the two have in common."""

    @property
    def kind(self) -> str: ...
    @property
    def policy(self) -> Any: ...
    @property
    def makespan(self) -> float: ...


T = TypeVar("T", bound=Timed)


def above_and_below(one: T, other: T | None) -> tuple[T, T | None]:
    """The measured one above the predicted one; two of one kind as they come."""
    if other is not None and other.kind == "measured" != one.kind:
        return other, one
    return one, other


def notes(above: Timed, below: Timed | None) -> tuple[str, str]:
    """What each is and when it ends; the policies too, where else both would be called the same."""
    policies = below is not None and below.kind == above.kind and below.policy != above.policy
    first, second = (
        f"{f'{each.policy}, ' if policies else ''}{each.kind}: {duration(each.makespan)}" if each else ""
        for each in (above, below)
    )
    return first, second
