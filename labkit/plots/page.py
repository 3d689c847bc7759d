"""Page: texts as a picture, such as what a language model wrote, which is another text on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap

from labkit.plots.bars import row_panel
from labkit.plots.panel import Picture, text_width
from labkit.plots.style import GROUND

_LINE = 92  # characters
_SPAN = 6.6 * 72  # points that a line has


def page(texts: Mapping[str, str], *, title: str = "", note: str = "") -> Picture:
    """Draw each text with its name at the left, in as many lines as it takes; the picture's alternative text has it."""
    rows: list[tuple[str, str]] = []
    for name, text in texts.items():
        for k, line in enumerate(_lines(text, _SPAN - max(map(text_width, texts))) or [""]):
            rows.append((name if k == 0 else "", line))
    panel = row_panel([name for name, _ in rows], (0.0, 1.0), title=title, bottom=0.12)
    panel.boxes(0.0, 1.0, -0.5, len(rows) - 0.5, facecolors=GROUND)
    for row, (_, line) in enumerate(rows):
        panel.word(line, 0.0, row, dx=6)
    panel.legend([], note)
    return panel.finish("; ".join(f"{name}: {text}" for name, text in texts.items()))


def _lines(text: str, points: float) -> list[str]:
    """The text in lines that are no longer than that."""
    width = _LINE
    while width > 10 and any(text_width(line) > points for line in wrap(text, width)):
        width -= 4
    return wrap(text, width)
