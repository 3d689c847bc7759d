"""Pipelines: who computes which microbatch when, as a table of ticks; what its bubble is and how much it keeps open."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, Self

from labkit.checks import one_of, whole
from labkit.errors import SettingError
from labkit.plots.panel import Picture
from labkit.plots.ticks import ticks
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


class Fault(NamedTuple):
    """What keeps a table from being carried out: where (`tick` is None of what is missing), and why in a sentence."""

    stage: int
    tick: int | None
    sentence: str


@dataclass(frozen=True, repr=False)
class PipelineSketch:
    """What each stage does tick by tick, None where it stands still: a table that may be unfinished or impossible.

    >>> sketch = PipelineSketch.read("F0 B0")
    >>> sketch.open, sketch.faults
    ((1,), ())
    >>> PipelineSketch.read("F0 · \\n · B0").faults[0].sentence
    'Stage 0 never does B0: every microbatch goes through every stage and back.'
    """

    ticks: tuple[tuple[Op | None, ...], ...]

    @classmethod
    def read(cls, text: str) -> Self:
        """A table as its repr writes it: a line for each stage, such as "F0 F1 · B0"; SettingError for another word."""
        rows = [re.sub(r"^\s*stage \d+", "", line).split() for line in text.splitlines()]
        rows = [row for row in rows if row and row[0] != "bubble"]
        wide = max(map(len, rows), default=0)
        return cls(tuple(tuple(map(_op, row)) + (None,) * (wide - len(row)) for row in rows))

    def __post_init__(self) -> None:
        if not self.ticks or len({len(row) for row in self.ticks}) != 1 or not self.ticks[0]:
            raise SettingError("A table has a row for each stage, all of them of the same number of ticks.")
        for op in (op for row in self.ticks for op in row):
            if op is not None and (not isinstance(op, Op) or op.kind not in "FBW" or min(op[1:]) < 0):
                raise SettingError(f'A table has {op!r}, which is no operation: give lk.costs.Op("F", 0), or None.')

    @cached_property
    def faults(self) -> tuple[Fault, ...]:
        """Operations that are there twice, missing, or before what they need."""
        found: list[Fault] = []
        at: dict[tuple[int, Op], int] = {}
        for stage, row in enumerate(self.ticks):
            for tick, op in enumerate(row):
                if op is not None and (stage, op) in at:
                    said = f"Stage {stage} does {op} twice, in ticks {at[stage, op]} and {tick}."
                    found.append(Fault(stage, tick, said))
                elif op is not None:
                    at[stage, op] = tick
        for stage, op in self.wanted():
            if (stage, op) not in at:
                said = f"Stage {stage} never does {op}: every microbatch goes through every stage and back."
                found.append(Fault(stage, None, said))
        pieces = self.pieces * self.stages
        for (stage, op), tick in at.items():
            for other in _needs(stage, op, self.stages, pieces):
                if other not in at or at[other] >= tick:
                    said = (
                        f"Stage {stage} does {op} in tick {tick}, before stage {other[0]} has done {other[1]}, which "
                        "it needs: move it to a later tick."
                    )
                    found.append(Fault(stage, tick, said))
        return tuple(found)

    def ready(self, stage: int, tick: int) -> list[Op]:
        """What a stage could do in that tick and does nowhere yet: the next forward, and the next back."""
        at = {(s, op): t for s, row in enumerate(self.ticks) for t, op in enumerate(row) if op is not None}
        kinds = "FBW" if self.split else "FB"
        following = [Op(kind, sum(op is not None and op.kind == kind for op in self.ticks[stage])) for kind in kinds]
        needed = {op: _needs(stage, op, self.stages, self.stages) for op in following}
        return [op for op in following if all(at.get(other, tick) < tick for other in needed[op])]

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

    @cached_property
    def stages(self) -> int:
        """How many stages there are."""
        return len(self.ticks)

    @cached_property
    def microbatches(self) -> int:
        """How many microbatches go through."""
        return 1 + max((op.microbatch for op in self._ops()), default=-1)

    @cached_property
    def pieces(self) -> int:
        """How many pieces of the model each stage has."""
        return 1 + max((op.piece for op in self._ops()), default=0)

    @cached_property
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

    def plot(self, *, most: int | None = None) -> Picture:
        """The table as a picture: faults are framed, and stages marked that keep more than `most` microbatches open."""
        rows = [[None if op is None else (op.kind, str(op)[1:]) for op in row] for row in self.ticks]
        faulty = {(fault.stage, fault.tick) for fault in self.faults}
        return ticks(rows, self.open, most=most, faulty=faulty, title="Who computes what when", alt=repr(self))

    def __repr__(self) -> str:
        wide = max((len(str(op)) for op in self._ops()), default=1)
        rows = [" ".join(("·" if op is None else str(op)).ljust(wide) for op in row).rstrip() for row in self.ticks]
        lines = [f"stage {s}  {row}" for s, row in enumerate(rows)]
        return "\n".join([*lines, f"bubble {percent(self.bubble)}, open microbatches {', '.join(map(str, self.open))}"])

    def _ops(self) -> list[Op]:
        return [op for row in self.ticks for op in row if op is not None]


@dataclass(frozen=True, repr=False)
class PipelineTable(PipelineSketch):
    """What each stage does tick by tick, and None where it stands still.

    Raises SettingError for a table that cannot be carried out: an operation that is missing or there twice, or that
    comes before what it needs.

    >>> PipelineTable.of("1f1b", stages=2, microbatches=2)
    stage 0  F0 F1 ·  B0 ·  B1
    stage 1  ·  F0 B0 F1 B1 ·
    bubble 33.3%, open microbatches 2, 1
    """

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
        elif v > 1:
            raise SettingError(f'interleave={v} goes with schedule="interleaved" alone, and this is {schedule!r}.')
        return _known(schedule, p, m, v)

    def __post_init__(self) -> None:
        super().__post_init__()
        if faults := self.faults:
            raise SettingError(faults[0].sentence)


@lru_cache(maxsize=64)  # every peer asks in every round
def _known(schedule: str, p: int, m: int, v: int) -> PipelineTable:
    if schedule == "interleaved":
        return PipelineTable(_timed([_interleaved(s, p, m, v) for s in range(p)], p * v))
    order = {"gpipe": _gpipe, "1f1b": one_forward_one_backward, "zero-bubble": _zero_bubble}[schedule]
    return PipelineTable(_timed([order(s, p, m) for s in range(p)], p))


def _op(word: str) -> Op | None:
    """An operation as it is written: F0, B12, W3, F0' of the second piece, and a dot for none."""
    if word in (".", "·", "-"):
        return None
    found = re.fullmatch(r"([FBW])(\d+)('*)", word)
    if found is None:
        raise SettingError(f"{word!r} is no operation: write F0, B0 or W0 for microbatch 0, and · for none.")
    return Op(found[1], int(found[2]), len(found[3]))


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


def one_forward_one_backward(stage: int, p: int, m: int) -> list[Op]:
    """What stage `stage` of p does under 1F1B with m microbatches, in order (arXiv:2006.09503).

    >>> print(*one_forward_one_backward(0, p=2, m=3))
    F0 F1 B0 F2 B1 B2
    """
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
