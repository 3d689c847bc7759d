"""Fonts: those that words are drawn with, and what to write where none of them has the characters."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

from labkit.translation.translate import tr

if TYPE_CHECKING:
    from matplotlib.font_manager import FontProperties

CHINESE = (  # of Linux, Windows and macOS, the most legible first
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "Noto Sans CJK JP"),
    *("Microsoft YaHei", "PingFang SC", "Hiragino Sans GB", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Heiti SC"),
    *("SimHei", "STHeiti", "SimSun", "Droid Sans Fallback", "AR PL UMing CN", "Arial Unicode MS"),
)


def font(size: float) -> FontProperties:
    """What words of a size are drawn with: matplotlib's own font, and for Chinese the best that is installed."""
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=list(_families()), size=size)


def readable(text: str) -> str:
    """A text as a picture shows it: in the language that is on, if there is a font for it, and never as empty boxes.

    >>> readable("loss"), readable("\\U0010fffd?")
    ('loss', '…?')
    """
    said = tr(text)
    if said.isascii() or drawable(said):
        return said
    if drawable(text):
        return text
    return "".join(it if it in _characters() else "…" for it in text)


@lru_cache(maxsize=8192)
def drawable(text: str) -> bool:
    """Whether the fonts that are installed have all characters of a text."""
    return text.isascii() or set(text) <= _characters()


@cache
def _families() -> tuple[str, ...]:
    from matplotlib import rcParams
    from matplotlib.font_manager import fontManager

    installed = {it.name for it in fontManager.ttflist}
    return (*rcParams["font.family"], *[it for it in CHINESE if it in installed][:1])


@cache
def _characters() -> frozenset[str]:
    """What can be drawn with all of the families together."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    files = [findfont(FontProperties(family=[family])) for family in _families()]
    return frozenset(chr(code) for file in files for code in get_font(file).get_charmap())
