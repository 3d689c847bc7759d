"""The style of every picture: colours, sizes, and the looks of what recurs.

A picture is drawn in ink on a white plate, whatever the theme: it is saved with the notebook, printed and shown on
other pages, texts name its colours, and no ink can be read on white and on a dark ground alike (4.5 to 1 on each).
"""

from typing import Any

INK, GREY, FAINT, GROUND, PLATE = "#222222", "#5a6068", "#d5d9dc", "#f1f3f4", "#ffffff"
LEGIBLE = 4.5  # to 1: the least contrast of words with what is behind them (WCAG 2.2, 1.4.3)
# matplotlib's petroff10 cycle, chosen for every kind of colour vision (Petroff, arXiv:2107.02270)
CYCLE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
ALARM = CYCLE[2]
COLOURS = {  # of bars, by kind
    "compute": CYCLE[0],
    "communicate": CYCLE[1],
    "transfer": CYCLE[9],
    "wait": "#ddd6b5",  # pale: it is what is missing
    "finished by all": CYCLE[3],
    "checkpoint": CYCLE[4],
    "lost": CYCLE[2],
    "restart": CYCLE[7],
}
MEMORY = {  # of stacks, by what bytes are for; from dark to light, and none of the kinds above that share a picture
    "parameters": CYCLE[4],
    "optimiser": CYCLE[5],
    "gradients": CYCLE[7],
    "activations": CYCLE[9],
}

WIDTH, DPI = 7.2, 110  # of a figure: inches, dots per inch
ROUND = 12  # of its corners: dots
SIZE, TITLE_SIZE = 9.0, 10.5  # of words, points
TITLED, PLAIN = 0.62, 0.40  # inches above a panel with and without a title, for its legend too

# What matplotlib's collections are given.
GRID: dict[str, Any] = {"colors": FAINT, "linewidths": 0.6, "zorder": 1}
DASHED: dict[str, Any] = {"linestyles": [(0, (4, 2))], "colors": INK, "linewidths": 1.3, "zorder": 3}
ADJOINING: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.8, "zorder": 2}  # boxes side by side
HOLLOW: dict[str, Any] = {"facecolors": "none", "edgecolors": INK, "linewidths": 1.1, "zorder": 3}
FAULT: dict[str, Any] = {"edgecolors": ALARM, "linewidths": 1.4, "zorder": 3}  # one of a million items stays visible


def contrast(one: str, other: str) -> float:
    """How much two colours differ in brightness, from 1 to 21 (WCAG 2.2).

    >>> contrast("#ffffff", "#000000")
    21.0
    """
    dark, bright = sorted(map(_luminance, (one, other)))
    return (bright + 0.05) / (dark + 0.05)


def ink_on(ground: str) -> str:
    """The colour of words on a ground of that colour: ink where it can be read, else white or black."""
    return INK if contrast(INK, ground) >= LEGIBLE else max("#ffffff", "#000000", key=lambda it: contrast(it, ground))


def as_text(colour: str) -> str:
    """The colour, as dark as words of it have to be on the plate.

    >>> as_text("#bd1f01"), as_text("#e76300")
    ('#bd1f01', '#c55400')
    """
    while contrast(colour, PLATE) < LEGIBLE:
        colour = "#" + "".join(f"{int(0.95 * channel):02x}" for channel in bytes.fromhex(colour[1:]))
    return colour


def _luminance(colour: str) -> float:
    shares = [channel / 255 for channel in bytes.fromhex(colour[1:])]
    linear = [it / 12.92 if it <= 0.04045 else ((it + 0.055) / 1.055) ** 2.4 for it in shares]
    return sum(weight * it for weight, it in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
