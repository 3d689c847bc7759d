"""A drawing surface on matplotlib's Agg canvas, with words, ticks and legend of its own, and the picture it becomes.

matplotlib's axes make one artist for every word, tick and swatch; of the time a labelled Gantt chart takes, nine tenths
go into these. Here all words of a panel are outlines in one collection, and its boxes and lines are collections too,
which makes a picture 2 to 5 times as fast to draw: that is what a slider needs. Nothing uses pyplot, so no figure is
kept alive behind the notebook's back.
"""

from __future__ import annotations

import io
import math
import re
from base64 import b64encode
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.plots.fonts import font, readable
from labkit.plots.style import DASHED, DPI, GREY, GRID, INK, PLAIN, PLATE, ROUND, SIZE, TITLE_SIZE, TITLED, WIDTH
from labkit.translation.translate import tr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Marks = Sequence[tuple[float, str]]  # of an axis: where, and the words there
_CLEAR = 3.0  # points between two words in a row


class Picture:
    """A finished matplotlib figure with its description in words; shows itself as PNG in a notebook."""

    def __init__(self, figure: Figure, alt: str) -> None:
        self.figure = figure
        self.alt = alt

    def png(self) -> bytes:
        """Return the picture as PNG bytes."""
        return png([self])

    def save(self, path: str | Path, **options: Any) -> None:
        """Write the picture to a file; its ending gives the format (png, svg, pdf), `options` as savefig takes them."""
        self.figure.savefig(path, **options)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        image = b64encode(self.png()).decode("ascii")
        return {"image/png": image, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}

    def __repr__(self) -> str:
        return self.alt


def png(pictures: Sequence[Picture]) -> bytes:
    """Pictures of one width below each other as PNG bytes, which say in words what they show.

    They stand on a plate with round corners, for dark themes, and are lightly compressed, which is fastest.
    """
    from PIL import Image, PngImagePlugin

    canvases: list[Any] = [picture.figure.canvas for picture in pictures]
    for canvas in canvases:
        canvas.draw()
    pixels = np.concatenate([np.asarray(canvas.buffer_rgba()) for canvas in canvases])
    corner = _corner()
    for turned in (pixels, pixels[::-1], pixels[:, ::-1], pixels[::-1, ::-1]):
        turned[: len(corner), : len(corner), 3] = corner
    buffer = io.BytesIO()
    words = PngImagePlugin.PngInfo()
    words.add_itxt("Description", "; ".join(picture.alt for picture in pictures))
    Image.fromarray(pixels).save(buffer, "png", compress_level=1, pnginfo=words)
    return buffer.getvalue()


@cache
def _corner() -> NDArray[np.uint8]:
    """How opaque the upper left corner of the plate is, [pixels, pixels]."""
    far = ROUND - 0.5 - np.arange(ROUND)
    opaque: NDArray[np.uint8] = (255 * np.clip(ROUND + 0.5 - np.hypot(far, far[:, None]), 0, 1)).astype(np.uint8)
    return opaque


class Panel:
    """One coordinate system, `xlim` by `ylim`, `height` inches tall; words are collected and drawn at the end.

    `left` and `bottom` are inches for the words there. With `ax` it is drawn into these axes, as they stand.
    """

    def __init__(
        self,
        height: float,
        xlim: tuple[float, float],
        ylim: tuple[float, float],
        *,
        title: str = "",
        left: float = 0.5,
        bottom: float = 0.48,
        ax: Axes | None = None,
    ) -> None:
        self.ax = ax if ax is not None else axes(height, TITLED if title else PLAIN, bottom, left)[0]
        self.ax.set_axis_off()
        self.ax.set(xlim=xlim, ylim=ylim)
        self.xlim, self.ylim = xlim, ylim
        box, dpi = self.ax.get_window_extent(), self.ax.get_figure(root=True).dpi  # type: ignore[union-attr]
        self.x_points = box.width * 72 / dpi / abs(xlim[1] - xlim[0])  # points per unit of x
        self.y_points = box.height * 72 / dpi / abs(ylim[1] - ylim[0])
        self._words: list[tuple[Any, tuple[float, float], str]] = []  # outline, place, colour
        self._below: list[tuple[float, float]] = []  # from where to where words stand below the ticks, in points
        if title:
            self.word(title, xlim[0], ylim[1], dx=8 - 72 * left, dy=29, size=TITLE_SIZE)

    def word(
        self,
        text: str,
        x: float,
        y: float,
        *,
        dx: float = 0.0,
        dy: float = 0.0,
        align: str = "left",
        size: float = SIZE,
        colour: str = INK,
        tex: bool = False,
    ) -> float:
        """Write text at (x, y) moved by (dx, dy) points, vertically centred; `align` is left, centre or right.

        With `tex` it is a formula between dollar signs. Returns the width in points.
        """
        outline, width = _outline(text if tex else readable(text), size, tex)
        left = dx - width * {"left": 0.0, "centre": 0.5, "right": 1.0}[align]
        moved = type(outline)(outline.vertices + np.array((left, dy - 0.36 * size)), outline.codes)
        self._words.append((moved, (x, y), colour))
        return width

    def formula(self, latex: str, x: float, y: float, *, dy: float = 0.0) -> None:
        """Write a formula that ends at x, centred `dy` points above y; as it stands where matplotlib cannot set it."""
        try:
            self.word(mathtext(latex), x, y, dy=dy, align="right", size=11, tex=True)
        except ValueError:
            self.word(latex, x, y, dy=dy, align="right", colour=GREY)

    def fits(self, text: str, length: float, height: float = 1.0) -> bool:
        """Whether text fits into a box of `length` by `height` in data units."""
        return height * self.y_points >= SIZE and length * self.x_points >= text_width(text) + 3

    def boxes(self, x0: ArrayLike, x1: ArrayLike, y0: ArrayLike, y1: ArrayLike, **style: Any) -> None:
        """Draw rectangles as one collection; scalars are repeated, `style` is as PolyCollection takes it."""
        from matplotlib.collections import PolyCollection

        a, b, c, d = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (x0, x1, y0, y1)))
        corners = np.stack([np.stack([a, b, b, a], -1), np.stack([c, c, d, d], -1)], -1).reshape(-1, 4, 2)
        if len(corners):
            self.ax.add_collection(PolyCollection(corners, **{"clip_on": False, **style}), autolim=False)  # type: ignore[arg-type]

    def lines(self, lines: Sequence[ArrayLike], **style: Any) -> None:
        """Draw lines through points [m, 2] as one collection; `style` is as LineCollection takes it."""
        from matplotlib.collections import LineCollection

        self.ax.add_collection(LineCollection(lines, **{"clip_on": False, **style}), autolim=False)

    def image(self, rgb: NDArray[np.float64], extent: tuple[float, float, float, float]) -> None:
        """Draw a grid of colours [rows, columns, 3] between (left, right, bottom, top)."""
        self.ax.imshow(rgb, extent=extent, aspect="auto", interpolation="nearest", zorder=1)

    def rows(self, names: Sequence[str]) -> None:
        """Name the rows 0, 1, … at the left, as many of them as there is room for."""
        step = math.ceil(1.2 * SIZE / self.y_points)
        for row in range(0, len(names), step):
            self.word(names[row], self.xlim[0], row, dx=-6, align="right")

    def x_axis(self, label: str, marks: Marks | None = None, *, scale: float = 1.0, grid: bool = True) -> None:
        """Write `marks` below, or ticks at `scale` times the data's value, with a light grid; the label at the right.

        Where the marks are too many for the room, every second, third, … of them is left.
        """
        if marks is None:
            marks = [(t / scale, f"{t:g}") for t in ticks(self.xlim[0] * scale, self.xlim[1] * scale, 8)]
        marks = next(some for some in (marks[::k] for k in range(1, len(marks) + 2)) if self._apart(some))
        for x, text in marks:
            self.word(text, x, self.ylim[0], dy=-9, align="centre", colour=GREY)
        if grid:
            self.lines([[(x, self.ylim[0]), (x, self.ylim[1])] for x, _ in marks], **GRID)
        self._word_below(label, self.xlim[1], align="right", colour=GREY)

    def y_axis(self, label: str, marks: Marks | None = None) -> None:
        """Write `marks`, or ticks, at the left with a light grid; the label stands above them."""
        marks = [(y, f"{y:g}") for y in ticks(*self.ylim, 6)] if marks is None else marks
        for y, text in marks:
            self.word(text, self.xlim[0], y, dx=-6, align="right", colour=GREY)
        self.lines([[(self.xlim[0], y), (self.xlim[1], y)] for y, _ in marks], **GRID)
        self.word(label, self.xlim[0], self.ylim[1], dx=-28, dy=10, colour=GREY)

    def mark(self, name: str, x: float) -> None:
        """Draw a dashed line at x, with its name below the ticks, as near as there is room."""
        self.lines([[(x, self.ylim[0]), (x, self.ylim[1])]], **DASHED)
        self._word_below(name, x, align="centre", colour=INK)

    def legend(self, entries: Sequence[tuple[str, bool, str]], note: str = "") -> None:
        """Name colours (colour, hollow, name) in a row above the panel, right-aligned, after a grey note."""
        x, y, dx = self.xlim[1], self.ylim[1], 0.0
        for colour, hollow, name in reversed(entries):
            dx -= self.word(name, x, y, dx=dx, dy=10, align="right") + 2
            dx -= self.word("□" if hollow else "■", x, y, dx=dx, dy=10, align="right", size=12, colour=colour) + 9
        if note:
            self.word(note, x, y, dx=dx, dy=10, align="right", colour=GREY)

    def finish(self, alt: str) -> Picture:
        """Draw the collected words, and hand the figure over."""
        from matplotlib.collections import PathCollection
        from matplotlib.transforms import Affine2D

        figure: Any = self.ax.get_figure(root=True)
        words = PathCollection(
            [outline for outline, _, _ in self._words],
            sizes=[],
            offsets=[at for _, at, _ in self._words],
            offset_transform=self.ax.transData,
            facecolors=[colour for _, _, colour in self._words],
            linewidths=0,
            zorder=5,
            clip_on=False,
        )
        words.set_transform(Affine2D().scale(1 / 72) + figure.dpi_scale_trans)  # outlines are in points
        self.ax.add_collection(words, autolim=False)
        return Picture(figure, tr(alt))

    def _apart(self, marks: Marks) -> bool:
        """Whether words below these places, in ascending order, leave room between them."""
        ends = [(x * self.x_points, text_width(text) / 2) for x, text in marks]
        return all(b - a >= right + left + _CLEAR for (a, right), (b, left) in pairwise(ends))

    def _word_below(self, text: str, x: float, *, align: str, colour: str) -> None:
        """Write text below the ticks at x, or beside what already stands there."""
        width, room = text_width(text), abs(self.xlim[1] - self.xlim[0]) * self.x_points
        wanted = (x - self.xlim[0]) * self.x_points - (width if align == "right" else width / 2)
        places = [
            wanted,
            room - width,
            *(at for a, b in self._below for at in (a - width - 2 * _CLEAR, b + 2 * _CLEAR)),
        ]
        inside = [at for at in places if at + width <= room + 1e-6]
        free = [
            at for at in inside if all(at + width + _CLEAR <= a or b + _CLEAR <= at for a, b in self._below)
        ] or inside
        left = min(free, key=lambda at: abs(at - wanted))
        self._below.append((left, left + width))
        self.word(text, self.xlim[0], self.ylim[0], dx=left, dy=-23, colour=colour)


def axes(height: float, top: float, bottom: float, left: float, columns: int = 1) -> list[Axes]:
    """Coordinate systems side by side on a new figure, `height` inches tall, with inches for the words around them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tall, right = height + top + bottom, 0.2
    figure = Figure(figsize=(WIDTH, tall), dpi=DPI, facecolor=PLATE)
    FigureCanvasAgg(figure)
    wide = (1 / columns) - (left + right) / WIDTH
    places = [(k / columns + left / WIDTH, bottom / tall, wide, height / tall) for k in range(columns)]
    return [figure.add_axes(place) for place in places]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between low and high, at most `most` of them (steps of 1, 2 or 5 times a power of ten).

    >>> ticks(0, 10, 6), ticks(0.31, 0.99, 4)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [0.5])
    """
    from matplotlib.ticker import MaxNLocator

    low, high = min(low, high), max(low, high)
    found = MaxNLocator(max(1, most - 1), steps=[1, 2, 5, 10], min_n_ticks=1).tick_values(low, high)
    near = 1e-9 * (high - low)
    return [float(f"{tick:.12g}") for tick in found if low - near <= tick <= high + near]


def text_width(text: str) -> float:
    """The width of a word in points, as the panels write it."""
    return _outline(readable(text), SIZE)[1]


@lru_cache(maxsize=8192)
def _outline(text: str, size: float, tex: bool = False) -> tuple[Any, float]:
    """The outline of a word, or of a formula (`tex`), its baseline at the origin, and its width; both in points.

    ValueError for a formula that matplotlib does not know.
    """
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import text_to_path

    letters = font(size)
    vertices, codes = text_to_path.get_text_path(letters, text, ismath=tex)
    scale = size / text_to_path.FONT_SCALE
    outline = Outline(np.asarray(vertices).reshape(-1, 2) * scale, codes if len(vertices) else None)
    width, _, _ = text_to_path.get_text_width_height_descent(text, letters, ismath=tex)
    return outline, float(width)


_KNOWN = (  # what matplotlib does not know of LaTeX, and what comes nearest
    (r"\\[bB]ig(?![a-zA-Z])", ""),
    (r"\\bmod(?![a-zA-Z])", r"\\;\\mathrm{mod}\\;"),
    (r"\\[td]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\[td]frac(?![a-zA-Z])", r"\\frac"),
)


def mathtext(latex: str) -> str:
    r"""The formula with what matplotlib knows, between dollar signs.

    >>> print(mathtext(r"\tfrac12 x \bmod 2"))
    $\frac{1}{2} x \;\mathrm{mod}\; 2$
    """
    for pattern, known in _KNOWN:
        latex = re.sub(pattern, known, latex)
    return f"${latex}$"
