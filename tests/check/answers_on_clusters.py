"""Answers to the exercise on the doors of a cluster: right ones, and wrong ones with their hints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def open_doors(doors: Any, here: bool) -> int:
    return sum(not asks and (here or at != "127.0.0.1") for at, asks in doors)


RIGHT: dict[str, Callable[..., Any]] = {"open_doors": open_doors}
WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("open_doors", lambda doors, here: sum(here or at != "127.0.0.1" for at, _ in doors), "asks for one"),
    ("open_doors", lambda doors, here: open_doors(doors, True), "from the machine itself alone"),
    ("open_doors", lambda doors, here: open_doors(doors, False), "has an account on it"),
    ("open_doors", lambda doors, here: sum(not s and at == "10.0.0.7" for at, s in doors), "all addresses"),
]
