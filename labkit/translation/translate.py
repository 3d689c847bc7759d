"""Translate: what is shown for an English text in the language that is on; English where no table knows it.

Texts are looked up where they are shown, so that code is written, and reads, in English. A table is a text file in the
folder of its language: an English text on a line, its translation indented on the next one, or nothing where both are
the same, as with names. `{1}`, `{2}` stand for numbers, with or without a unit, and `{words}` for words that are
translated in turn. A text of several sentences, or a list, is also known where all of its pieces are.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

LANGUAGES = {"en": "English", "zh": "中文"}
_NUMBER = (
    r"[-+−±≤<>]?\s?(?:\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|\.\d+|∞|inf|nan)(?:\s?(?:%|×|[munµ]?s|min|h|[kMGT]?i?B)(?!\w))?"
)
_HOLE = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[A-Za-z]{2,}")
_END = r"[.!?] (?-i:[A-Z0-9])"  # of a sentence, and the beginning of the next one
_JOINTS = (  # between the pieces of a text, and what stands there in Chinese; those of sentences first
    *((r"(?<=[.!?]) (?=[A-Z0-9])", ""), (r"\n", "\n"), (r"(?<=[:;]) ", ""), (r"; ", "；")),
    *((r", and | and ", "和"), (r", ", "，"), (r" · ", " · ")),
)
_spoken: list[str] = []  # the language that is on, once somebody asked


class Template(NamedTuple):
    """An English text with holes, as a pattern, with its longest words without one, and its translation."""

    pattern: re.Pattern[str]
    key: str
    said: str


def spoken() -> str:
    """The language that is on: at first that of the environment variable LABKIT_LANGUAGE, else English."""
    if not _spoken:
        wanted = os.environ.get("LABKIT_LANGUAGE", "en")
        if wanted not in LANGUAGES:
            warnings.warn(f"LABKIT_LANGUAGE is {wanted!r}: choose one of {', '.join(LANGUAGES)}.", stacklevel=2)
        speak(wanted if wanted in LANGUAGES else "en")
    return _spoken[0]


def speak(language: str) -> None:
    """Switch one of the `LANGUAGES` on, for what is shown from now on."""
    _spoken[:] = [language]


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """One of the `LANGUAGES` inside the block, so that what is shown in one language stays in it."""
    before = spoken()
    speak(language)
    try:
        yield
    finally:
        speak(before)


def tr(text: str) -> str:
    """What is shown for an English text.

    >>> speak("zh"), tr("Next step"), tr("step {k} of what nobody knows"), speak("en")
    (None, '下一步', 'step {k} of what nobody knows', None)
    """
    if spoken() == "en":
        return text
    said = translated(text, spoken())
    return text if said is None else said


def tr_formula(latex: str) -> str:
    r"""A formula with the words in its `\text{…}` translated."""
    return re.sub(r"(?<=\\text\{)[^{}]+", lambda it: _kept_spaces(it[0]), latex)


def _kept_spaces(text: str) -> str:
    return text.replace(text.strip(), tr(text.strip())) if text.strip() else text


@lru_cache(maxsize=8192)
def translated(text: str, language: str) -> str | None:
    """The translation of a text, whatever its capitals; None where there are words in it that no table knows."""
    return _found(text, language)


def _found(text: str, language: str) -> str | None:
    exact, templates = tables(language)
    bare = text.strip()
    if (found := exact.get(bare.casefold())) is not None:
        return found or bare
    if not _WORD.search(re.sub(_NUMBER, "", bare)):  # numbers, symbols and formulas are the same in all languages
        return text
    for template in templates:
        if template.key in bare.casefold() and (match := template.pattern.fullmatch(bare)):
            parts = match.groupdict()
            return _HOLE.sub(lambda hole, parts=parts: _filled(hole[1], parts), template.said)  # type: ignore[misc]
    return _joined(bare, language)


def _filled(name: str, parts: dict[str, str]) -> str:
    return parts[f"number{name}"] if name.isdecimal() else tr(parts[name])


def _joined(text: str, language: str) -> str | None:
    """A text piece by piece: sentences, and what is listed in them."""
    for joint, said in _JOINTS:
        pieces = re.split(joint, text)
        if len(pieces) > 1:
            known = [_found(piece, language) for piece in pieces]
            if all(it is not None for it in known):
                return said.join(it for it in known if it is not None)
    return None


@cache
def tables(language: str) -> tuple[dict[str, str], list[Template]]:
    """What a language's tables say: of whole texts, and of those with holes, the most particular ones first."""
    exact, templates = {}, []
    for english, said in pairs(language):
        if _HOLE.search(english):
            pieces = _HOLE.split(english)
            escaped = (_hole(it) if k % 2 else re.escape(it) for k, it in enumerate(pieces))
            pattern = re.sub(r"(?<=\\ )a\\ (?=\(\?P)", r"an?\\ ", "".join(escaped))  # as what fills the hole wants it
            key = max(pieces[::2], key=len).casefold().removesuffix("a ")
            templates.append((sum(map(len, pieces[::2])), Template(re.compile(pattern, re.I | re.S), key, said)))
        else:
            exact[english.casefold()] = said
    return exact, [it for _, it in sorted(templates, key=lambda it: -it[0])]


def _hole(name: str) -> str:
    return f"(?P<number{name}>{_NUMBER})" if name.isdecimal() else f"(?P<{name}>(?:(?!{_END}).)+?)"


def pairs(language: str) -> list[tuple[str, str]]:
    """Every English text of a language's tables and its translation, which is empty where both are the same."""
    found: list[tuple[str, str]] = []
    for table in sorted((Path(__file__).parent / language).glob("*.txt")):
        for line in table.read_text(encoding="utf-8").splitlines():
            if line.startswith(" ") and found:
                found[-1] = (found[-1][0], line.strip())
            elif line.strip() and not line.startswith("#"):
                found.append((line.strip(), ""))
    return found
