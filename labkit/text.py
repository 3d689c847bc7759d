"""Text: tables, plurals, bytes, seconds and shares as people write them."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Colours of words in HTML: mixed with the ink around them, which each theme has its own of, so dark on light and light
# on dark. What they say stands in the words, too.
GOOD, MIND, BAD = (f"color-mix(in srgb, {it} 60%, currentColor)" for it in ("#1b6e3c", "#8a5a00", "#b3261e"))
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of words below a `head`, the first `left` columns aligned to the left.

    >>> Table(["name", "loss"], [["a", "2.30"], ["bcdef", "0.51"]], left=1)
    name   loss
    a      2.30
    bcdef  0.51
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 0

    def __repr__(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = [str.ljust if k < self.left else str.rjust for k in range(len(widths))]
        return "\n".join(
            "  ".join(side(word, width) for side, word, width in zip(sides, line, widths, strict=True)).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(word)}</th>" if word else "<td></td>" for word in self.head)
        rows = ("".join(f"<td>{escape(word)}</td>" for word in row) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def remaining(seconds: float) -> str:
    """How long it still takes, as people say it.

    >>> remaining(0.4), remaining(75), remaining(7500)
    ('1 s left', '1 min 15 s left', '2 h 5 min left')
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s left"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s left"
    return f"{whole // 3600} h {whole % 3600 // 60} min left"


def duration(seconds: float) -> str:
    """Seconds as people write them, in the unit that reads best.

    >>> duration(0.0123), duration(9.666), duration(12345)
    ('12.3 ms', '9.67 s', '12,300 s')
    """
    scale, unit = unit_for(seconds)
    rounded = float(f"{seconds * scale:.3g}")
    return f"{rounded:,.0f} {unit}" if rounded >= 100 else f"{rounded:g} {unit}"


def unit_for(seconds: float) -> tuple[float, str]:
    """By what to multiply seconds of this size, and the unit that makes."""
    if seconds >= 0.1 or seconds == 0:
        return 1.0, "s"
    return (1e3, "ms") if seconds >= 1e-4 else (1e6, "µs")


def amount(nbytes: float, *, binary: bool = False) -> str:
    """Bytes as people write them, in the unit that reads best: powers of ten, as of a link's bandwidth, or `binary`
    ones, as of a machine's memory.

    >>> amount(19_240), amount(5e6), amount(0), amount(3 << 29, binary=True)
    ('19.2 kB', '5 MB', '0 B', '1.5 GiB')
    """
    units = _BINARY if binary else _UNITS
    scale, unit = next((pair for pair in units if nbytes >= 0.9995 * pair[0]), (1.0, "B"))
    return f"{float(f'{nbytes / scale:.3g}'):g} {unit}"


def percent(share: float | None) -> str:
    """A share of one; a dash where there is none.

    >>> percent(0.9561), percent(None)
    ('95.6%', '–')
    """
    return "–" if share is None else f"{share:.1%}"


def plural(noun: str, number: int) -> str:
    """The noun for so many things.

    >>> plural("peer", 1), plural("peer", 0), plural("copy", 2)
    ('peer', 'peers', 'copies')
    """
    if number == 1:
        return noun
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def some(number: int, noun: str) -> str:
    """How many there are of something.

    >>> some(1, "worker"), some(10_000, "worker")
    ('1 worker', '10,000 workers')
    """
    return f"{number:,} {plural(noun, number)}"


def name_all(things: Sequence[Any] | NDArray[Any], most: int = 12) -> str:
    """Name every thing, or the first `most` of them and how many more there are.

    >>> name_all(range(3)), name_all(range(1000), most=2)
    ('0, 1, 2', '0, 1 and 998 more')
    """
    return listed([short(thing, 60) for thing in things[:most]], len(things))


def listed(words: Sequence[str], total: int) -> str:
    """Words in a row, and how many more than these there are.

    >>> listed(["a", "b"], 2), listed(["a", "b"], 1000)
    ('a, b', 'a, b and 998 more')
    """
    more = f" and {total - len(words):,} more" if total > len(words) else ""
    return ", ".join(words) + more


def short(thing: Any, most: int = 30) -> str:
    """A thing in one line of about `most` characters.

    >>> short("a" * 100), short(np.float64(0.5))
    ("'aaaaaaaaaaaa...aaaaaaaaaaaaa'", '0.5')
    """
    line = reprlib.Repr()
    line.maxstring = line.maxother = most
    return " ".join(line.repr(thing.item() if isinstance(thing, np.generic) else thing).split())


def a(noun: str) -> str:
    """A noun with its article.

    >>> a("list"), a("Adam"), a("SGD"), a("ndarray")
    ('a list', 'an Adam', 'an SGD', 'an ndarray')
    """
    spelt = noun[:2].isupper() or noun == "ndarray"  # letter by letter: es, gee, dee
    return f"{'an' if noun[:1].lower() in ('aefhilmnorsx' if spelt else 'aeio') else 'a'} {noun}"


def in_words(error: BaseException, most: int = 120) -> str:
    """An exception in one line: its kind, and the first line of what it says.

    >>> in_words(ValueError("no such file.\\nAsk again.")), in_words(KeyError())
    ('ValueError: no such file', 'KeyError')
    """
    said = str(error).strip()
    first = said.splitlines()[0].rstrip(".:")[:most] if said else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
