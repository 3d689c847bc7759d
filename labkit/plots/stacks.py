"""Stacks: amounts as bars of several kinds laid end to end, such as bytes by what they are for, against limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from labkit.plots.bars import row_panel
from labkit.plots.panel import Picture, text_width
from labkit.plots.style import ADJOINING, ALARM, COLOURS, CYCLE, GREY, GROUND, INK, MEMORY, ink_on
from labkit.text import amount


def stacked(
    rows: Mapping[str, Mapping[str, float]],
    *,
    limits: Mapping[str, float] | None = None,
    words: Callable[[float], str] = amount,
    title: str = "",
    note: str = "",
    span: float | None = None,
    alt: str = "",
) -> Picture:
    """Draw a bar for each row, of its parts by kind, and its total behind it as `words` say it: bytes, if nothing else.

    `limits` are named amounts, drawn as dashed lines; totals beyond the largest have the colour of alarm. `span` fixes
    the length of the axis, so that pictures can be compared.
    """
    limits = limits or {}
    totals = {name: sum(parts.values()) for name, parts in rows.items()}
    end = span or 1.22 * max([*totals.values(), *limits.values(), 1e-12])
    panel = row_panel(list(rows), (0.0, end), title=title, bottom=0.45)
    panel.boxes(0, end, [k - 0.42 for k in range(len(rows))], [k + 0.42 for k in range(len(rows))], facecolors=GROUND)
    kinds = list(dict.fromkeys(kind for parts in rows.values() for kind in parts))
    colours = {kind: (COLOURS | MEMORY).get(kind, CYCLE[k % len(CYCLE)]) for k, kind in enumerate(kinds)}
    most = max(limits.values(), default=float("inf"))
    for row, (name, parts) in enumerate(rows.items()):
        at = 0.0
        for kind, size in parts.items():
            until = min(at + size, end)
            panel.boxes(at, until, row - 0.34, row + 0.34, facecolors=colours[kind], **ADJOINING)
            if panel.fits(words(size), until - at, 0.68):
                panel.word(words(size), (at + until) / 2, row, align="centre", colour=ink_on(colours[kind]))
            at = until
        said = words(totals[name])
        beyond = ALARM if totals[name] > most else GREY
        inside = at + (text_width(said) + 8) / panel.x_points > end
        panel.word(said, end if inside else at, row, dx=-4 if inside else 5, align="right" if inside else "left",
                   colour=INK if inside else beyond)  # fmt: skip
    for name, x in limits.items():
        panel.mark(name, x)
    panel.legend([(colours[kind], False, kind) for kind in kinds], note)
    said = ", ".join(f"{name} {words(total)}" for name, total in totals.items())
    return panel.finish(alt or f"{title}: {said}".lstrip(": "))
