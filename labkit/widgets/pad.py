"""Pad: a square to draw a digit in, and what a model sees of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from labkit.checks import Floats
from labkit.translation.translate import tr

SIDE, SEEN = 32, 8  # points of the square, and of the picture that models see, along an edge
_HELP = "Draw a digit here, with the mouse; or with the arrow keys, while the space bar puts the pen down and lifts it."


class Pad(anywidget.AnyWidget):
    """A square of 32 × 32 points; `ink` are those that were drawn on, counted row by row."""

    _esm = Path(__file__).with_suffix(".js")
    ink = traitlets.List(traitlets.Int()).tag(sync=True)
    help = traitlets.Unicode().tag(sync=True)

    def __init__(self) -> None:
        super().__init__(help=tr(_HELP))


def seen(ink: Iterable[int]) -> Floats:
    """The 8 × 8 greys, [64] from 0 to 1, of drawn points: fitted into the square, then counted in blocks of 4 × 4.

    So the digits of scikit-learn were made of handwriting (Kaynak, 1995). All zero where there is no ink.

    >>> seen([0, 1, 32, 33]).reshape(8, 8)[:, 4]
    array([1., 1., 1., 1., 1., 1., 1., 1.])
    """
    points = np.array(sorted({it for it in ink if 0 <= it < SIDE**2}), dtype=np.int64)
    if not len(points):
        return np.zeros(SEEN**2)
    rows, columns = np.divmod(points, SIDE)
    tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
    drawn = np.zeros((tall, wide))
    drawn[rows - rows.min(), columns - columns.min()] = 1.0
    edge = max(tall, wide)
    square = np.zeros((SIDE, SIDE))
    height, width = (max(1, round(it * SIDE / edge)) for it in (tall, wide))
    down, across = (np.arange(new) * old // new for new, old in ((height, tall), (width, wide)))
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square[top : top + height, left : left + width] = drawn[np.ix_(down, across)]
    block = SIDE // SEEN
    return np.asarray(square.reshape(SEEN, block, SEEN, block).mean((1, 3)).ravel())
