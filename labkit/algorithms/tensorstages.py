"""TensorStages: a pipeline whose stages are rows of peers, which compute each layer together."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from labkit.algorithms.base import Peer, Round
from labkit.algorithms.holds import Params
from labkit.algorithms.pipeline import Pipeline
from labkit.algorithms.tensorparallel import TensorParallel
from labkit.exchange import Along, Axes, Copy, Sum
from labkit.exchange.along import along


@dataclass(frozen=True)
class TensorStages(Pipeline):
    """Pipeline along one axis of a mesh and TensorParallel along another: D. Narayanan et al., arXiv:2104.04473, §3.

    In each tick all stages exchange as often as the one that has most to: the others meet without a word.
    """

    tensor: TensorParallel = TensorParallel()  # noqa: RUF009  frozen
    mesh: Axes = Axes(("pipeline", "tensor"), (1, 1))  # noqa: RUF009  frozen

    @classmethod
    def of(cls, pipeline: Pipeline, tensor: TensorParallel, mesh: Axes) -> Self:
        return cls(pipeline.microbatches, pipeline.schedule, pipeline.interleave, tensor, mesh)

    @property
    def share(self) -> float:  # type: ignore[override]
        return 1 / self.mesh.size("tensor")

    def through(self, peer: Peer, piece: int, x: Tensor, params: Params) -> Generator[Any, Any, Tensor]:
        steps = self.tensor.through(peer, peer.pieces[piece], x, params)
        out: Tensor = yield from along("tensor", self.mesh, steps)
        return out

    def wait(self, peer: Peer, pieces: Sequence[int | None]) -> Round:
        each = [
            0 if piece is None else self.tensor.sums(peer, peer.pieces_of(stage)[piece])
            for stage, piece in enumerate(pieces)
        ]
        for _ in range(max(each) - each[int(peer.ids)]):
            yield Along("tensor", self.mesh, Copy({}))

    def summed(self, found: Params) -> Generator[Any, Any, Params]:
        """Of what all peers of a stage have copies of, each has the gradient of its share of the layers."""
        copied = self.tensor.holds.copied(found)
        total: Params = yield Along("tensor", self.mesh, Sum(copied) if copied else Copy({}))
        return found | total
