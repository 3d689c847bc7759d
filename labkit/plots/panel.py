"""A drawing surface on matplotlib's Agg canvas without matplotlib's axes furniture, and the picture it becomes.

Of the time matplotlib takes for a labelled Gantt chart, nine tenths go into axis ticks and into one artist for every
word. Here all words of a panel are outlines in one collection, and its boxes and lines are collections too, so that a
fresh picture is ready before a retained one of the usual kind would have been redrawn. Nothing uses pyplot, so no
figure is kept alive behind the notebook's back.
"""

from __future__ import annotations

import io
import math
import re
from base64 import b64encode
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK, GREY, FAINT, GROUND = "#262626", "#5a6068", "#d5d9dc", "#f1f3f4"
# matplotlib's petroff10 cycle, chosen for every kind of colour vision (Petroff, arXiv:2107.02270)
CYCLE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
WIDTH, DPI, SIZE = 7.2, 110, 9.0  # inches, dots per inch, points


class Picture:
    """A finished matplotlib figure with its description in words; shows itself as PNG in a notebook."""

    def __init__(self, figure: Figure, alt: str) -> None:
        self.figure = figure
        self.alt = alt

    def png(self) -> bytes:
        """Return the picture as PNG bytes, lightly compressed: zlib's best level takes longer than the wire saves."""
        from PIL import Image

        canvas: Any = self.figure.canvas
        canvas.draw()
        pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png", compress_level=1)
        return buffer.getvalue()

    def save(self, path: str | Path, **options: Any) -> None:
        """Write the picture to a file; its ending gives the format (png, svg, pdf), `options` as savefig takes them."""
        self.figure.savefig(path, **options)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        image = b64encode(self.png()).decode("ascii")
        return {"image/png": image, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}

    def __repr__(self) -> str:
        return self.alt


class Panel:
    """One coordinate system, `xlim` by `ylim`, `height` inches tall; words are collected and drawn at the end."""

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
        top, right = 0.62 if title else 0.40, 0.2
        self.ax = ax if ax is not None else _axes(height, left, right, top, bottom)
        self.ax.set_axis_off()
        self.ax.set_xlim(*xlim)
        self.ax.set_ylim(*ylim)
        self.xlim, self.ylim = xlim, ylim
        box, dpi = self.ax.get_window_extent(), self.ax.get_figure(root=True).dpi  # type: ignore[union-attr]
        self.x_points = box.width * 72 / dpi / abs(xlim[1] - xlim[0])  # points per unit of x
        self.y_points = box.height * 72 / dpi / abs(ylim[1] - ylim[0])
        self._stamps: list[tuple[Any, tuple[float, float], str]] = []
        if title:
            self.word(title, xlim[0], ylim[1], dx=8 - 72 * left, dy=29, size=10.5)

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
    ) -> float:
        """Write text at (x, y) moved by (dx, dy) points, vertically centred; `align` is left, centre or right.

        Returns the width in points.
        """
        outline, width = _outline(text, size)
        left = dx - width * {"left": 0.0, "centre": 0.5, "right": 1.0}[align]
        self._stamp(outline, left, dy - 0.36 * size, x, y, colour)
        return width

    def formula(self, latex: str, x: float, y: float, *, dy: float = 0.0, size: float = 11) -> None:
        """Write a formula that ends at x, centred `dy` points above y; as it stands where matplotlib cannot set it."""
        try:
            outline, width = _outline(mathtext(latex), size, tex=True)
        except ValueError:
            self.word(latex, x, y, dy=dy, align="right", colour=GREY)
        else:
            self._stamp(outline, -width, dy - 0.36 * size, x, y, INK)

    def _stamp(self, outline: Any, dx: float, dy: float, x: float, y: float, colour: str) -> None:
        moved = type(outline)(outline.vertices + np.array((dx, dy)), outline.codes)
        self._stamps.append((moved, (x, y), colour))

    def fits(self, text: str, length: float, height: float = 1.0) -> bool:
        """Whether text fits into a box of `length` by `height` in data units."""
        return height * self.y_points >= SIZE and length * self.x_points >= _outline(text, SIZE)[1] + 3

    def boxes(self, x0: ArrayLike, x1: ArrayLike, y0: ArrayLike, y1: ArrayLike, **style: Any) -> None:
        """Draw rectangles as one collection; scalars are repeated, `style` is as PolyCollection takes it."""
        from matplotlib.collections import PolyCollection

        a, b, c, d = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (x0, x1, y0, y1)))
        corners = np.stack([np.stack([a, b, b, a], -1), np.stack([c, c, d, d], -1)], -1).reshape(-1, 4, 2)
        if len(corners):
            self.ax.add_collection(PolyCollection(corners, **{"clip_on": False, **style}), autolim=False)  # type: ignore[arg-type]

    def lines(self, ends: Sequence[Sequence[tuple[float, float]]], **style: Any) -> None:
        """Draw line segments as one collection; `style` is as LineCollection takes it."""
        from matplotlib.collections import LineCollection

        self.ax.add_collection(LineCollection(ends, **{"clip_on": False, **style}), autolim=False)

    def image(self, rgb: NDArray[np.float64], extent: tuple[float, float, float, float]) -> None:
        """Draw a grid of colours [rows, columns, 3] between (left, right, bottom, top)."""
        self.ax.imshow(rgb, extent=extent, aspect="auto", interpolation="nearest", zorder=1)
        self.ax.set(xlim=self.xlim, ylim=self.ylim)

    def rows(self, names: Sequence[str]) -> None:
        """Name the rows 0, 1, … at the left, as many of them as there is room for."""
        step = math.ceil(1.2 * SIZE / self.y_points)
        for row in range(0, len(names), step):
            self.word(names[row], self.xlim[0], row, dx=-6, align="right")

    def x_axis(self, label: str, scale: float = 1.0) -> None:
        """Write ticks below, at `scale` times the data's value, with a light grid; the label stands at the right."""
        low, high = self.xlim
        at = [(t / scale, f"{t:g}") for t in ticks(low * scale, high * scale, 8)]
        for x, text in at:
            self.word(text, x, self.ylim[0], dy=-9, align="centre", colour=GREY)
        self.lines([[(x, self.ylim[0]), (x, self.ylim[1])] for x, _ in at], colors=FAINT, linewidths=0.6, zorder=1)
        self.word(label, high, self.ylim[0], dy=-23, align="right", colour=GREY)

    def y_axis(self, label: str) -> None:
        """Write ticks at the left with a light grid; the label stands above them."""
        at = ticks(*self.ylim, 6)
        for y in at:
            self.word(f"{y:g}", self.xlim[0], y, dx=-6, align="right", colour=GREY)
        self.lines([[(self.xlim[0], y), (self.xlim[1], y)] for y in at], colors=FAINT, linewidths=0.6, zorder=1)
        self.word(label, self.xlim[0], self.ylim[1], dx=-28, dy=10, colour=GREY)

    def mark(self, name: str, x: float) -> None:
        """Draw a dashed line at x, with its name below the ticks."""
        dashes = {"linestyles": [(0, (4, 2))], "colors": INK, "linewidths": 1.3, "zorder": 3}
        self.lines([[(x, self.ylim[0]), (x, self.ylim[1])]], **dashes)
        room = (self.xlim[1] - x) * self.x_points - _outline(name, SIZE)[1] / 2
        self.word(name, x, self.ylim[0], dy=-23, align="centre", dx=min(0.0, room - 18))  # clear of the axis' label

    def legend(self, entries: Sequence[tuple[str, bool, str]], note: str = "") -> None:
        """Name colours (colour, hollow, name) in a row above the panel, right-aligned, after a grey note."""
        x, y, dx = self.xlim[1], self.ylim[1], 0.0
        for colour, hollow, name in reversed(entries):
            dx -= self.word(name, x, y, dx=dx, dy=10, align="right") + 12
            self._stamp(_swatch(hollow), dx, 6, x, y, colour)
            dx -= 12
        if note:
            self.word(note, x, y, dx=dx, dy=10, align="right", colour=GREY)

    def finish(self, alt: str) -> Picture:
        """Draw the collected words, and hand the figure over."""
        from matplotlib.collections import PathCollection
        from matplotlib.transforms import Affine2D

        figure: Any = self.ax.get_figure(root=True)
        words = PathCollection(
            [outline for outline, _, _ in self._stamps],
            sizes=[],
            offsets=[at for _, at, _ in self._stamps],
            offset_transform=self.ax.transData,
            facecolors=[colour for _, _, colour in self._stamps],
            linewidths=0,
            zorder=5,
            clip_on=False,
        )
        words.set_transform(Affine2D().scale(1 / 72) + figure.dpi_scale_trans)  # outlines are in points
        self.ax.add_collection(words, autolim=False)
        return Picture(figure, alt)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between low and high, at most `most` of them (steps of 1, 2 or 5 times a power of ten).

    >>> ticks(0, 10, 6), ticks(0.31, 0.99, 4)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [0.5])
    """
    low, high = min(low, high), max(low, high)
    raw = (high - low) / max(1, most - 1) or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def text_width(text: str) -> float:
    """The width of a word in inches, as the panels write it."""
    return _outline(text, SIZE)[1] / 72


def _axes(height: float, left: float, right: float, top: float, bottom: float) -> Axes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tall = height + top + bottom
    figure = Figure(figsize=(WIDTH, tall), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure.add_axes((left / WIDTH, bottom / tall, (WIDTH - left - right) / WIDTH, height / tall))


@lru_cache(maxsize=8192)
def _outline(text: str, size: float, tex: bool = False) -> tuple[Any, float]:
    """The outline of a word, or of a formula (`tex`), its baseline at the origin, and its width; both in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    vertices, codes = text_to_path.get_text_path(font, text, ismath=tex)
    scale = size / text_to_path.FONT_SCALE
    outline = Outline(np.asarray(vertices).reshape(-1, 2) * scale, codes if len(vertices) else None)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=tex)
    return outline, float(width)


@lru_cache(maxsize=2)
def _swatch(hollow: bool) -> Any:
    from matplotlib.path import Path as Outline

    square = np.array([(0, 0), (8, 0), (8, 8), (0, 8), (0, 0)], dtype=float)
    if not hollow:
        return Outline(square, closed=True)
    hole = 1.2 + square[::-1] * (5.6 / 8)  # wound the other way, so that it stays empty
    return Outline.make_compound_path(Outline(square, closed=True), Outline(hole, closed=True))


# -- Mathtext: LaTeX as matplotlib sets it, which knows less of it than a browser does.

_KNOWN = (  # what matplotlib does not know, and what comes nearest
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
