"""An all-reduce in one process, step by step, to look at who sends what to whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labkit import tree
from labkit.errors import ExchangeError, SettingError
from labkit.exchange.collectives import Move, Program, cut, form

_SHOWN = 12  # numbers of a vector, and ranks, in a repr


class Sent(NamedTuple):
    """`nbytes` bytes from rank `source` to rank `target`: chunk number `chunk`, or the whole vector (None)."""

    source: int
    target: int
    nbytes: int
    chunk: int | None = None

    def __str__(self) -> str:
        return f"{self.source} → {self.target}" if self.chunk is None else f"{self.source} ─{self.chunk}→ {self.target}"


@dataclass(frozen=True, eq=False)
class Step:
    """What was sent at once in step `number` (from 1), and the vectors [n, P] of all ranks after it."""

    number: int
    sent: tuple[Sent, ...]
    state: Tensor
    before: Tensor

    def __repr__(self) -> str:
        """The moves in one line, then a line for each rank: chunks between bars, what has just changed in brackets."""
        moves = "   ".join(str(sent) for sent in self.sent[:_SHOWN])
        sizes = sorted({sent.nbytes for sent in self.sent})
        size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        more = "   …" if len(self.sent) > _SHOWN else ""
        lines = [f"step {self.number}:   {moves}{more}   ({size} bytes each)"]
        lines += [f"  rank {rank:<3} {self._row(rank)}" for rank in range(min(len(self.state), _SHOWN))]
        return "\n".join(lines + ["  …"] * (len(self.state) > _SHOWN))

    def _row(self, rank: int) -> str:
        chunks = len(self.state) if any(sent.chunk is not None for sent in self.sent) else 1
        cells, at = ["│"], 0
        for chunk in cut(self.state[rank], chunks):
            for new in chunk.tolist():
                if at == _SHOWN:
                    return "".join([*cells, " …"])
                cells.append(f"[{new:g}]".rjust(8) if new != self.before[rank, at] else f"{new:g} ".rjust(8))
                at += 1
            cells.append(" │")
        return "".join(cells)


def walk(how: str | Program, values: Sequence[Any] | Tensor) -> Iterator[Step]:
    """Step through the sum of `values`, one vector [P] for each of n ranks, in the form "naive", "ring" or "tree".

    `how` may also be a program of your own. All moves whose two ends are ready happen in one step. Raises SettingError
    for an unknown form, ExchangeError for vectors of different lengths and for a program whose ranks wait for each
    other, or send something else than their partner expects.

    >>> for step in walk("ring", [[1, 2], [10, 20]]):
    ...     print(step)
    step 1:   0 ─0→ 1   1 ─1→ 0   (8 bytes each)
      rank 0   │      1  │    [22] │
      rank 1   │    [11] │     20  │
    step 2:   0 ─1→ 1   1 ─0→ 0   (8 bytes each)
      rank 0   │    [11] │     22  │
      rank 1   │     11  │    [22] │
    """
    if len(values) == 0:
        raise SettingError("There are no values to walk with: give one vector for each rank.")
    vectors = [torch.as_tensor(value).flatten().clone() for value in values]
    tree.require_alike(list(vectors))
    program = form(how).program if isinstance(how, str) else how
    return _steps(program, vectors)


def _steps(program: Program, vectors: list[Tensor]) -> Iterator[Step]:
    ranks = [program(rank, len(vectors), x) for rank, x in enumerate(vectors)]
    moves = {rank: move for rank, steps in enumerate(ranks) if (move := next(steps, None)) is not None}
    number, before = 0, torch.stack(vectors)
    while moves:
        ready = _ready(moves)
        received = {rank: _received(moves, rank) for rank in ready}  # all leave before any arrives
        sent = [
            Sent(rank, move.to, tree.nbytes(move.send), move.chunk)
            for rank, move in ((rank, moves[rank]) for rank in ready)
            if move.send is not None and move.to is not None
        ]
        for rank in ready:
            try:
                moves[rank] = ranks[rank].send(received[rank])
            except StopIteration:
                del moves[rank]
        number, state = number + 1, torch.stack(vectors)
        yield Step(number, tuple(sent), state, before)
        before = state


def _ready(moves: dict[int, Move]) -> list[int]:
    """The ranks whose move finds its counterpart at both ends, once those without one are left out."""
    ready = set(moves)
    while waiting := {rank for rank in ready if not _met(moves, rank, ready)}:
        ready -= waiting
    if not ready:
        raise ExchangeError(
            f"Ranks {', '.join(map(str, moves))} wait for each other for ever: let every send to a rank meet a receive "
            "there, in the same order on both sides."
        )
    return sorted(ready)


def _met(moves: dict[int, Move], rank: int, ready: set[int]) -> bool:
    move = moves[rank]
    heard = move.to is None or (move.to in ready and moves[move.to].source == rank)
    return heard and (move.source is None or (move.source in ready and moves[move.source].to == rank))


def _received(moves: dict[int, Move], rank: int) -> Tensor | None:
    source = moves[rank].source
    if source is None:
        return None
    sent, like = moves[source].send, moves[rank].like
    if sent is None or like is None or sent.shape != like.shape:
        shapes = ["nothing" if it is None else str(list(it.shape)) for it in (sent, like)]
        raise ExchangeError(
            f"Rank {source} sends {shapes[0]} to rank {rank}, which expects {shapes[1]}: give both the same chunk."
        )
    return sent.clone()
