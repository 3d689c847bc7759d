"""Pipelines: who computes which microbatch when, as a table of ticks; what its bubble is and how much it keeps open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from labkit.checks import one_of, whole
from labkit.errors import SettingError
from labkit.text import percent

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero-bubble")


def bubble(stages: int, microbatches: int, interleave: int = 1) -> float:
    """The share of the time in which a stage of a pipeline stands still: (p − 1) / (m·v + p − 1).

    GPipe's (Y. Huang et al., arXiv:1811.06965) and 1F1B's; with `interleave` v each stage has v pieces of the model,
    and the bubble shrinks (D. Narayanan et al., arXiv:2104.04473, §2.2). Forward and backward steps count as one.

    >>> round(bubble(4, 4), 3), round(bubble(4, 8), 3), bubble(1, 8)
    (0.429, 0.273, 0.0)
    """
    p, m, v = whole(stages, "stages"), whole(microbatches, "microbatches"), whole(interleave, "interleave")
    return (p - 1) / (m * v + p - 1)


class Op(NamedTuple):
    """What a stage does in one tick with microbatch `microbatch`, in its `piece`-th piece of the model.

    `kind` "F" goes forward, "B" back. Where a schedule parts the way back in two, "B" computes the gradient of the
    inputs alone, and "W" that of the weights.
    """

    kind: str
    microbatch: int
    piece: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.microbatch}" + "'" * self.piece


@dataclass(frozen=True, repr=False)
class PipelineTable:
    """What each stage does tick by tick, and None where it stands still.

    Raises SettingError for a table that cannot be carried out: an operation that is missing or there twice, or that
    comes before what it needs.

    >>> PipelineTable.of("1f1b", stages=2, microbatches=2)
    stage 0  F0 F1 ·  B0 ·  B1
    stage 1  ·  F0 B0 F1 B1 ·
    bubble 33.3%, open microbatches 2, 1
    """

    ticks: tuple[tuple[Op | None, ...], ...]

    @classmethod
    def of(cls, schedule: str, stages: int, microbatches: int, interleave: int = 1) -> PipelineTable:
        """The table of a known schedule: "gpipe", "1f1b", "interleaved" or "zero-bubble".

        GPipe goes forward with all and then back (arXiv:1811.06965); 1F1B goes back as early as it can
        (PipeDream-Flush, arXiv:2006.09503); interleaved it has `interleave` pieces of the model on each stage
        (arXiv:2104.04473, §2.2); zero bubble is ZB-H1, which fills ticks with the gradients of weights
        (arXiv:2401.10241, §2).
        """
        one_of(schedule, "schedule", SCHEDULES)
        p, m, v = whole(stages, "stages"), whole(microbatches, "microbatches"), whole(interleave, "interleave")
        if schedule == "interleaved":
            if m % p:
                raise SettingError(
                    f"{m} microbatches are not divided by {p} stages, as interleaving wants: give {p * m}."
                )
            return cls(_timed([_interleaved(s, p, m, v) for s in range(p)], p * v))
        if v > 1:
            raise SettingError(f'interleave={v} goes with schedule="interleaved" alone, and this is {schedule!r}.')
        order = {"gpipe": _gpipe, "1f1b": _one_forward_one_backward, "zero-bubble": _zero_bubble}[schedule]
        return cls(_timed([order(s, p, m) for s in range(p)], p))

    def __post_init__(self) -> None:
        if not self.ticks or len({len(row) for row in self.ticks}) != 1 or not self.ticks[0]:
            raise SettingError("A table has a row for each stage, all of them of the same number of ticks.")
        for op in (op for row in self.ticks for op in row):
            if op is not None and (not isinstance(op, Op) or op.kind not in "FBW" or min(op[1:]) < 0):
                raise SettingError(f'A table has {op!r}, which is no operation: give lk.costs.Op("F", 0), or None.')
        at: dict[tuple[int, Op], int] = {}
        for stage, row in enumerate(self.ticks):
            for tick, op in enumerate(row):
                if op is None:
                    continue
                if (stage, op) in at:
                    raise SettingError(f"Stage {stage} does {op} twice, in ticks {at[stage, op]} and {tick}.")
                at[stage, op] = tick
        for stage, op in self.wanted():
            if (stage, op) not in at:
                raise SettingError(
                    f"Stage {stage} never does {op}: every microbatch goes through every stage and back."
                )
        pieces = self.pieces * self.stages
        for (stage, op), tick in at.items():
            for other in _needs(stage, op, self.stages, pieces):
                if other not in at or at[other] >= tick:
                    raise SettingError(
                        f"Stage {stage} does {op} in tick {tick}, before stage {other[0]} has done {other[1]}, which "
                        "it needs: move it to a later tick."
                    )

    def wanted(self) -> list[tuple[int, Op]]:
        """All that has to be done, by stage."""
        kinds = "FBW" if self.split else "FB"
        return [
            (s, Op(kind, k, piece))
            for s in range(self.stages)
            for piece in range(self.pieces)
            for kind in kinds
            for k in range(self.microbatches)
        ]

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return len(self.ticks)

    @property
    def microbatches(self) -> int:
        """How many microbatches go through."""
        return 1 + max((op.microbatch for op in self._ops()), default=-1)

    @property
    def pieces(self) -> int:
        """How many pieces of the model each stage has."""
        return 1 + max((op.piece for op in self._ops()), default=0)

    @property
    def split(self) -> bool:
        """Whether the gradients of weights have ticks of their own."""
        return any(op.kind == "W" for op in self._ops())

    @property
    def bubble(self) -> float:
        """The share of all ticks in which a stage stands still."""
        idle = sum(op is None for row in self.ticks for op in row)
        return idle / (self.stages * len(self.ticks[0]))

    @property
    def open(self) -> tuple[int, ...]:
        """The most microbatches whose activations each stage keeps at once, counted in those of one piece."""
        most = []
        for row in self.ticks:
            held: Counter[None] = Counter()
            peak = 0
            for op in row:
                held[None] += 0 if op is None else {"F": 1, "W": -1, "B": 0 if self.split else -1}[op.kind]
                peak = max(peak, held[None])
            most.append(peak)
        return tuple(most)

    def __repr__(self) -> str:
        wide = max((len(str(op)) for op in self._ops()), default=1)
        rows = [" ".join(("·" if op is None else str(op)).ljust(wide) for op in row).rstrip() for row in self.ticks]
        lines = [f"stage {s}  {row}" for s, row in enumerate(rows)]
        return "\n".join([*lines, f"bubble {percent(self.bubble)}, open microbatches {', '.join(map(str, self.open))}"])

    def _ops(self) -> list[Op]:
        return [op for row in self.ticks for op in row if op is not None]


def _needs(stage: int, op: Op, stages: int, pieces: int) -> list[tuple[int, Op]]:
    """What must have been done a tick before; the pieces of the model follow each other round the stages."""
    at = op.piece * stages + stage  # among all pieces
    before = (at - 1) % stages, Op(op.kind, op.microbatch, (at - 1) // stages)
    after = (at + 1) % stages, Op(op.kind, op.microbatch, (at + 1) // stages)
    if op.kind == "F":
        return [before] if at else []
    if op.kind == "W":
        return [(stage, op._replace(kind="B"))]
    return [(stage, op._replace(kind="F")), *([after] if at + 1 < pieces else [])]


def _timed(orders: Sequence[Sequence[Op]], pieces: int) -> tuple[tuple[Op | None, ...], ...]:
    """Each stage's operations in its order, each as early as what it needs is done."""
    stages = len(orders)
    done: dict[tuple[int, Op], int] = {}
    rows: list[list[Op | None]] = [[] for _ in orders]
    left = [list(order) for order in orders]
    tick = 0
    while any(left):
        ready = [
            bool(row) and all(done.get(it, tick) < tick for it in _needs(s, row[0], stages, pieces))
            for s, row in enumerate(left)
        ]
        for s, row in enumerate(left):
            op = row.pop(0) if ready[s] else None
            rows[s].append(op)
            if op is not None:
                done[s, op] = tick
        tick += 1
    return tuple(map(tuple, rows))


def _gpipe(stage: int, p: int, m: int) -> list[Op]:
    return [Op("F", k) for k in range(m)] + [Op("B", k) for k in reversed(range(m))]


def _one_forward_one_backward(stage: int, p: int, m: int) -> list[Op]:
    ahead = min(p - stage - 1, m)
    pairs = [op for k in range(m - ahead) for op in (Op("F", ahead + k), Op("B", k))]
    return [*(Op("F", k) for k in range(ahead)), *pairs, *(Op("B", k) for k in range(m - ahead, m))]


def _interleaved(stage: int, p: int, m: int, v: int) -> list[Op]:
    """Groups of p microbatches go through one piece after the other (Megatron-LM's order)."""

    def unit(kind: str, at: int) -> Op:
        piece = at % (p * v) // p
        return Op(kind, at // (p * v) * p + at % p, piece if kind == "F" else v - 1 - piece)

    total = m * v
    ahead = min((p - stage - 1) * 2 + (v - 1) * p, total) if v > 1 else min(p - stage - 1, total)
    pairs = [op for at in range(total - ahead) for op in (unit("F", ahead + at), unit("B", at))]
    return [*(unit("F", at) for at in range(ahead)), *pairs, *(unit("B", at) for at in range(total - ahead, total))]


def _zero_bubble(stage: int, p: int, m: int) -> list[Op]:
    """1F1B whose stages leave the weights of the last s microbatches that went back for later, as ZB-H1 does."""
    ahead = min(p - stage, m)
    order = [Op("F", k) for k in range(ahead)]
    for k in range(m):
        order.append(Op("B", k))
        order += [Op("W", k - stage)] * (k >= stage)
        order += [Op("F", k + ahead)] * (k + ahead < m)
    return order + [Op("W", k) for k in range(max(0, m - stage), m)]
