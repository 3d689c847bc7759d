"""Moments: layers that take time and no processor, by which a pipeline's table is timed on any computer's workers."""

from __future__ import annotations

from itertools import pairwise
from time import sleep
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.algorithms.pipeline import Pipeline
from labkit.costs.pipelines import PipelineTable
from labkit.data.tensors import from_tensors

if TYPE_CHECKING:
    from labkit.cluster.lab import Lab

_MOMENT = 0.05  # seconds, in which messages of a few numbers are nothing
_ROUNDS = 5  # of which the shortest one counts


def stood_still(table: PipelineTable, lab: Lab) -> float:
    """The share of a round in which workers that follow the table stood still; what they do takes a moment each.

    How long a tick takes is measured as well, by a single microbatch, which is never at two stages: so what messages
    take, and other programs, counts on both sides.
    """
    alone = PipelineTable.of("gpipe", table.stages, 1)
    tick = _shortest_round(alone, lab) / len(alone.ticks[0])
    busy = table.microbatches * table.pieces * (3 if table.split else 2)
    return 1 - busy * tick / _shortest_round(table, lab)


def _shortest_round(table: PipelineTable, lab: Lab) -> float:
    """Seconds of the shortest of some rounds."""
    from labkit.training.train import train  # which knows this room

    m = table.microbatches
    layers = [Moment(table.split) for _ in range(table.stages * table.pieces)]
    x = torch.randn(4 * m, 4, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"peers": table.stages, "rounds": _ROUNDS, "evaluate_every": _ROUNDS, "batch_size": m}
    run = train(nn.Sequential(*layers), from_tensors(x, x), Pipeline(m, table), loss=F.mse_loss, on=lab, **settings)
    ends = [0.0, *(row.seconds for row in run.result().rows)]
    return min(end - begin for begin, end in pairwise(ends))


class Moment(nn.Module):
    """A layer that takes a moment on the way forward, one on the way back, and with `split` one more for its weights.

    Only among ranks: what is tried in the notebook before they begin takes no longer than it has to.
    """

    def __init__(self, split: bool) -> None:
        super().__init__()
        self.linear, self.split = nn.Linear(4, 4, bias=False), split

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.linear.weight
        weight = _Wait.apply(weight, 0.0) if self.split else weight  # type: ignore[no-untyped-call]
        return F.linear(_Wait.apply(x, _MOMENT), weight)  # type: ignore[no-untyped-call]


class _Wait(torch.autograd.Function):
    """The same numbers, so many seconds later; a moment later on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        _wait(seconds)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        _wait(_MOMENT)
        return gradients[0], None


def _wait(seconds: float) -> None:
    if dist.is_initialized():
        sleep(seconds)
