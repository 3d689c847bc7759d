"""The style of every picture: colours, sizes, and the looks of what recurs."""

from typing import Any

INK, GREY, FAINT, GROUND = "#262626", "#5a6068", "#d5d9dc", "#f1f3f4"
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
SIZE, TITLE_SIZE = 9.0, 10.5  # of words, points
TITLED, PLAIN = 0.62, 0.40  # inches above a panel with and without a title, for its legend too

# What matplotlib's collections are given.
GRID: dict[str, Any] = {"colors": FAINT, "linewidths": 0.6, "zorder": 1}
DASHED: dict[str, Any] = {"linestyles": [(0, (4, 2))], "colors": INK, "linewidths": 1.3, "zorder": 3}
ADJOINING: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.8, "zorder": 2}  # boxes side by side
HOLLOW: dict[str, Any] = {"facecolors": "none", "edgecolors": INK, "linewidths": 1.1, "zorder": 3}
FAULT: dict[str, Any] = {"edgecolors": ALARM, "linewidths": 1.4, "zorder": 3}  # one of a million items stays visible
