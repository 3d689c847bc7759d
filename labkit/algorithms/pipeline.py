"""Pipeline: each peer holds some layers, and the microbatches of a batch go through them one after the other."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.holds import Params, Stages
from labkit.checks import whole
from labkit.costs.pipelines import Op, PipelineTable
from labkit.errors import SettingError
from labkit.exchange import Pass
from labkit.exchange.mean import Kind


@dataclass(frozen=True)
class Pipeline:
    """SGD on one batch by peers of which each has some layers; all of them see the same batches.

    What a stage does in each tick says the table of its `schedule`: "gpipe", "1f1b", "interleaved" (with `interleave`
    pieces of the model on each peer), "zero-bubble", or a lk.costs.PipelineTable of your own. arXiv:1811.06965 and
    arXiv:2104.04473, §2.2; the gradient is the mean over equal microbatches, so that `microbatches` has to divide the
    batch; it is the batch's own where the loss is a mean over examples, without weights and none left out.

    Raises SettingError for an unknown schedule, and when the run is planned where microbatches do not divide a batch.

    >>> import labkit as lk, torch
    >>> net = lambda: torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> lk.train(net, lk.data.load("digits"), Pipeline(microbatches=4), peers=2, rounds=100).result()
    History: Pipeline, 2 peers, after 100 rounds test accuracy 8...%, 0.41 MB sent per peer
    """

    same_batches: ClassVar[bool] = True
    means_of: ClassVar[tuple[Kind, ...]] = ()

    microbatches: int = 4
    schedule: str | PipelineTable = "1f1b"
    interleave: int = 1

    def __post_init__(self) -> None:
        whole(self.microbatches, "microbatches")
        table = self.table(1)
        if table.microbatches != self.microbatches:
            raise SettingError(
                f"The table has {table.microbatches} microbatches, and microbatches={self.microbatches} says otherwise."
            )

    @property
    def holds(self) -> Stages:
        """Layers that follow each other, in as many pieces as the schedule has."""
        return Stages(self.schedule.pieces if isinstance(self.schedule, PipelineTable) else self.interleave)

    def table(self, peers: int) -> PipelineTable:
        """What each stage does tick by tick."""
        if isinstance(self.schedule, PipelineTable):
            return self.schedule
        return PipelineTable.of(self.schedule, peers, self.microbatches, self.interleave)

    def check(self, peers: int) -> None:
        """Refuse a number of peers that the table has not got."""
        if (stages := self.table(peers).stages) != peers:
            raise SettingError(f"The table has {stages} stages for {peers} peers: take peers={stages}.")

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        table, stage, n = self.table(peer.peers), int(peer.ids), peer.peers
        x, y = next(batches)
        run = _Run(peer, x.chunk(self.microbatches), y.chunk(self.microbatches), table)
        for tick in range(len(table.ticks[0])):
            forward, back = run.do(table.ticks[stage][tick])
            came: dict[str, Tensor] = yield Pass.of(forward, back)
            run.receive("forward", came, table.ticks[(stage - 1) % n][tick], wraps=stage == 0)
            run.receive("back", came, table.ticks[(stage + 1) % n][tick], wraps=stage == n - 1)
        peer.apply(run.gradients())

    def predict(self, peer: Peer, inputs: Tensor) -> Generator[Any, Any, Tensor]:
        """The logits: inputs go through all pieces, and their outputs once round the ring, to everyone."""
        n, stage, last = peer.peers, int(peer.ids), peer.peers * len(peer.pieces) - 1
        x: Tensor | None = inputs if stage == 0 else None
        logits = inputs
        for at in range(last + n):
            mine = at % n == stage and x is not None
            if mine and at <= last and x is not None:
                x = _through(peer, at // n, x, peer.params)
            if at >= last and mine and x is not None:
                logits = x
            came = yield Pass.of(x if mine else None, None)
            x = came.get("forward")
        return logits


class _Run:
    """One batch on its way through a stage: what has arrived, and what is open."""

    def __init__(self, peer: Peer, xs: tuple[Tensor, ...], ys: tuple[Tensor, ...], table: PipelineTable) -> None:
        self._peer, self._ys, self._table = peer, ys, table
        self._params = peer.leaves(peer.params)
        self._arrived: dict[tuple[str, int, int], Tensor] = {}
        if int(peer.ids) == 0:
            self._arrived |= {("forward", k, 0): x for k, x in enumerate(xs)}
        self._open: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor | None]] = {}

    def do(self, op: Op | None) -> tuple[Tensor | None, Tensor | None]:
        """Do what the table says; what goes on and what goes back from it."""
        if op is None:
            return None, None
        self._peer.count(1 / (len(self._ys) * (3 if self._table.split else 2) * self._peer.peers * self._table.pieces))
        kind, k, piece = op
        if kind == "F":
            return self._forward(k, piece), None
        if kind == "B":
            return None, self._back(k, piece)
        _, out, y = self._open.pop((k, piece))
        self._collect(self._peer.pull(out, self._params, y))
        return None, None

    def _forward(self, k: int, piece: int) -> Tensor | None:
        start = self._peer.leaves({"": self._arrived.pop(("forward", k, piece))})[""]
        out = _through(self._peer, piece, start, self._params)
        ends = int(self._peer.ids) == self._peer.peers - 1 and piece == self._table.pieces - 1
        if ends:
            out = self._peer.loss((start, self._ys[k]), out) / len(self._ys)
        self._open[k, piece] = start, out, None
        return None if ends else out.detach()

    def _back(self, k: int, piece: int) -> Tensor | None:
        start, out, _ = self._open.pop((k, piece))
        y = self._arrived.pop(("back", k, piece), None)  # None of the loss itself
        wanted = {"": start} if self._table.split else self._params | {"": start}
        if self._table.split:
            self._open[k, piece] = start, out, y
        found = self._peer.pull(out, wanted, y, again=self._table.split)
        before = found.pop("", None)
        self._collect(found)
        return None if int(self._peer.ids) == 0 and piece == 0 else before

    def receive(self, way: str, came: dict[str, Tensor], sent: Op | None, wraps: bool) -> None:
        """Keep what came from a neighbour, who has just done `sent`; round the ring it goes to another piece."""
        if way in came and sent is not None:
            piece = sent.piece + (0 if not wraps else 1 if way == "forward" else -1)
            self._arrived[way, sent.microbatch, piece] = came[way]

    def _collect(self, found: Params) -> None:
        for name, gradient in found.items():
            p = self._params[name]
            p.grad = gradient if p.grad is None else p.grad + gradient

    def gradients(self) -> Params:
        """The sums over all microbatches."""
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self._params.items()}


def _through(peer: Peer, piece: int, x: Tensor, params: Params) -> Tensor:
    """What a piece of the peer's layers makes of x."""
    for layer in peer.pieces[piece]:
        x = peer.run(layer, x, params)
    return x
