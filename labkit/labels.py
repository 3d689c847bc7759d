"""Labels: names beside their points, none on top of another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_GAP = 7.0  # points between a marker's middle and its name
_STEP = 4.0  # of the lattice of other places
_CROSSED = 3.0  # points of distance that a name would rather be away than lie on one point of a line
_AWRY = 6.0  # points of distance that a place of the lattice counts as further than those right beside the anchor


def place(anchors: ArrayLike, widths: ArrayLike, height: float, room: tuple[float, float], lines: ArrayLike) -> Floats:
    """Where the names of `anchors` [n, 2] go: the lower left corners [n, 2] of boxes `widths` [n] by `height`.

    All in points, inside a `room` (width, height). A name stands near its anchor, clear of other names and of all
    anchors; it keeps off the points of `lines` [m, 2] where it can. Where there is no free place left it stands where
    it hides least.
    """
    at, wide = np.asarray(anchors, dtype=float).reshape(-1, 2), np.asarray(widths, dtype=float)
    under = _counted(np.asarray(lines, dtype=float).reshape(-1, 2), room)
    taken, corners = np.concatenate([at - 4, at + 4], axis=1), np.zeros_like(at)  # boxes: left, bottom, right, top
    for k in np.argsort(-at[:, 0], kind="stable"):  # who is near the right edge has least choice
        low, awry = _candidates(at[k], wide[k], height, room)
        boxes = np.concatenate([low, low + np.array([wide[k], height])], axis=1)
        hidden = _overlap(boxes, taken).sum(axis=1)
        distance = np.hypot(*(np.clip(at[k], boxes[:, :2], boxes[:, 2:]) - at[k]).T)
        best = np.argmin(distance + awry + _CROSSED * under(boxes) + 1e6 * hidden)
        corners[k] = low[best]
        taken = np.concatenate([taken, boxes[best][None]])
    return corners


def _candidates(at: Floats, width: float, height: float, room: tuple[float, float]) -> tuple[Floats, Floats]:
    """Lower left corners [c, 2]: right, left, above and below the anchor, then a lattice; and how awry each is [c]."""
    x, y = at
    beside = [(x + _GAP, y - height / 2), (x - _GAP - width, y - height / 2)]
    beside += [(x - width / 2, y + _GAP), (x - width / 2, y - _GAP - height)]
    across, up = max(room[0] - width, 0.0), max(room[1] - height, 0.0)
    grid = np.meshgrid(np.arange(0.0, across + 1e-9, _STEP), np.arange(0.0, up + 1e-9, _STEP))
    every = np.concatenate([np.array(beside), np.stack([axis.ravel() for axis in grid], axis=1)])
    awry = np.where(np.arange(len(every)) < len(beside), 0.0, _AWRY)
    fits = ((every >= 0) & (every <= (across, up))).all(axis=1)
    return every[fits], awry[fits]


def _counted(points: Floats, room: tuple[float, float]) -> Callable[[Floats], Floats]:
    """A function that counts how many of `points` [m, 2] lie in each of some boxes [c, 4], by a summed-area table."""
    size = tuple(int(length) + 2 for length in room)
    at = np.floor(points).astype(int)
    at = at[((at >= 0) & (at < np.array(size) - 1)).all(axis=1)]
    table = np.zeros(size)
    np.add.at(table, (at[:, 0] + 1, at[:, 1] + 1), 1.0)
    table = table.cumsum(axis=0).cumsum(axis=1)

    def count(boxes: Floats) -> Floats:
        left, bottom = np.clip(np.floor(boxes[:, :2] - 1).astype(int), 0, np.array(size) - 1).T
        right, top = np.clip(np.ceil(boxes[:, 2:] + 1).astype(int), 0, np.array(size) - 1).T
        inside: Floats = table[right, top] - table[left, top] - table[right, bottom] + table[left, bottom]
        return inside

    return count


def _overlap(boxes: Floats, others: Floats) -> Floats:
    """The area that each of `boxes` [c, 4] shares with each of `others` [m, 4], [c, m]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    area: Floats = np.clip(high - low, 0.0, None).prod(axis=2)
    return area
