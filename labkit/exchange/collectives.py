"""All-reduce from scratch: every rank ends with the sum of all ranks' vectors, in one of three forms.

Each form is one rank's program, a generator that yields its moves. `RankGroup` drives the same program over a real
process group that `walk` steps through in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labkit.costs.link import Link
from labkit.errors import ExchangeError, SettingError


@dataclass(frozen=True, eq=False)
class Move:
    """One step of one rank: `send` goes to rank `to`, and a tensor shaped as `like` comes from rank `source`.

    Either half may be missing. The yield returns what came, or None; `chunk` tells those who watch which part of the
    vector is sent, None all of it. Raises ExchangeError for a tensor without its rank, or a rank without its tensor.
    """

    send: Tensor | None = None
    to: int | None = None
    like: Tensor | None = None
    source: int | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        if (self.send is None) != (self.to is None) or (self.like is None) != (self.source is None):
            raise ExchangeError(
                "A move has a tensor without a rank or a rank without a tensor: give send= and to=, like= and source=."
            )


Moves = Generator[Move, Any, None]
Program = Callable[[int, int, Tensor], Moves]  # rank, size, its vector [P], to be summed in place


def cut(x: Tensor, parts: int) -> list[Tensor]:
    """Views of a vector [P] as `parts` chunks whose lengths differ by one at most; the last ones may be empty.

    >>> import torch
    >>> [chunk.tolist() for chunk in cut(torch.arange(4), 3)]
    [[0, 1], [2], [3]]
    """
    return list(torch.split(x, _lengths(len(x), parts)))


def _lengths(total: int, parts: int) -> list[int]:
    return [total // parts + (k < total % parts) for k in range(parts)]


def naive(rank: int, size: int, x: Tensor) -> Moves:
    """Everyone sends to rank 0, which sums and sends the sum to everyone: all of it passes through the root's link."""
    if rank > 0:
        yield Move(send=x, to=0)
        x.copy_((yield Move(like=x, source=0)))
        return
    for other in range(1, size):
        x += yield Move(like=x, source=other)
    for other in range(1, size):
        yield Move(send=x, to=other)


def ring(rank: int, size: int, x: Tensor) -> Moves:
    """Reduce-scatter, then all-gather, each in n−1 steps of one chunk to the right (Patarasuk & Yuan 2009, Sec. 3).

    After the first half rank i holds the whole sum of chunk i+1; doi:10.1016/j.jpdc.2008.09.002.
    """
    chunks, right, left = cut(x, size), (rank + 1) % size, (rank - 1) % size
    for step in range(size - 1):  # partial sums travel and grow
        out, into = (rank - step) % size, (rank - step - 1) % size
        chunks[into] += yield Move(chunks[out], right, like=chunks[into], source=left, chunk=out)
    for step in range(size - 1):  # whole sums travel
        out, into = (rank - step + 1) % size, (rank - step) % size
        chunks[into].copy_((yield Move(chunks[out], right, like=chunks[into], source=left, chunk=out)))


def tree(rank: int, size: int, x: Tensor) -> Moves:
    """A binomial tree: reduced to rank 0 over distances 1, 2, 4, …, then broadcast the same way back.

    Thakur, Rabenseifner & Gropp 2005, Sec. 3; doi:10.1177/1094342005051521.
    """
    children, parent = _family(rank, size)
    for child in children:
        x += yield Move(like=x, source=child)
    if parent is not None:
        yield Move(send=x, to=parent)
        x.copy_((yield Move(like=x, source=parent)))
    for child in reversed(children):
        yield Move(send=x, to=child)


def _family(rank: int, size: int) -> tuple[list[int], int | None]:
    """Whom a rank receives from in a binomial reduction, in order, and whom it then sends to."""
    children: list[int] = []
    distance = 1
    while distance < size:
        if rank & distance:
            return children, rank - distance
        if rank + distance < size:
            children.append(rank + distance)
        distance *= 2
    return children, None


@dataclass(frozen=True, eq=False)
class Form:
    """A program and what it costs: S bytes over n ranks take steps(n) · (α + S · share(n) / β) seconds."""

    program: Program
    steps: Callable[[int], int]
    share: Callable[[int], float]  # of the vector, in one step over the busiest link
    traffic: Callable[[int, int], dict[tuple[int, int], int]]  # numbers that go from i to j, for n ranks and P numbers

    def seconds(self, size: int, nbytes: float, link: Link) -> float:
        """How long `size` ranks take for vectors of `nbytes`, when every rank sends and receives at once at most one
        message (the α-β model)."""
        steps = self.steps(size)
        return link.seconds(steps * self.share(size) * nbytes, steps)


def _ring_traffic(size: int, numbers: int) -> dict[tuple[int, int], int]:
    """Each half passes on every chunk but one."""
    lengths = _lengths(numbers, size)
    return {
        (i, (i + 1) % size): 2 * numbers - lengths[(i + 1) % size] - lengths[(i + 2) % size]
        for i in range(size)
        if size > 1
    }


def _naive_traffic(size: int, numbers: int) -> dict[tuple[int, int], int]:
    return {ends: numbers for i in range(1, size) for ends in ((i, 0), (0, i))}


def _tree_traffic(size: int, numbers: int) -> dict[tuple[int, int], int]:
    parents = [(i, parent) for i in range(size) if (parent := _family(i, size)[1]) is not None]
    return {ends: numbers for i, parent in parents for ends in ((i, parent), (parent, i))}


FORMS = {
    "naive": Form(naive, lambda n: 2 * (n - 1), lambda n: 1.0, _naive_traffic),
    "ring": Form(ring, lambda n: 2 * (n - 1), lambda n: 1 / n, _ring_traffic),
    "tree": Form(tree, lambda n: 2 * (n - 1).bit_length(), lambda n: 1.0, _tree_traffic),
}


def form(name: str) -> Form:
    """The form of that name; "native", the process group's own all-reduce, costs what the ring costs.

    Raises SettingError for an unknown name.
    """
    if name != "native" and name not in FORMS:
        raise SettingError(f"{name!r} is no form of an all-reduce: give one of 'native', 'naive', 'ring', 'tree'.")
    return FORMS.get(name, FORMS["ring"])
