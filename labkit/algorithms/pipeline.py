"""Pipeline: each peer holds some layers, and the microbatches of a batch go through them one after the other."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.holds import Params, Stages
from labkit.checks import whole
from labkit.costs.pipelines import Op, PipelineTable
from labkit.errors import SettingError
from labkit.exchange import Pass
from labkit.exchange.mean import Kind
from labkit.exchange.tape import Tape


@dataclass(frozen=True)
class Pipeline:
    """SGD on one batch by peers of which each has some layers; all of them see the same batches.

    What a stage does in each tick says the table of its `schedule`: "gpipe", "1f1b", "interleaved" (with `interleave`
    pieces of the model on each peer), "zero-bubble", or a lk.costs.PipelineTable of your own. arXiv:1811.06965 and
    arXiv:2104.04473, §2.2; microbatches are equal, so that `microbatches` has to divide the batch. The loss is that of
    the whole batch, also where it weighs targets or leaves some out: each microbatch counts as much as it has of their
    weight.

    On workers the schedules of `torch.distributed.pipelining` do the work, for zero bubble its ZB1P. Your own table,
    1F1B with fewer microbatches than stages, and zero bubble with a number of microbatches that torch refuses are left
    to this generator.

    Raises SettingError for an unknown schedule, and when the run is planned where microbatches do not divide a batch,
    and ModelError for a loss that is not a mean of the microbatches' losses.

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

    def fits(self, peers: int, model: nn.Module, inputs: torch.Size, targets: torch.Size) -> None:
        """Refuse a batch that the microbatches do not divide."""
        if inputs[0] % self.microbatches:
            raise SettingError(
                f"batch_size={inputs[0]} is not divided by {self.microbatches} microbatches: give a multiple."
            )

    def batch_parts(self, peers: int) -> tuple[int, int]:
        """As many as there are microbatches, of examples."""
        return self.microbatches, 0

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        table, stage, n = self.table(peer.peers), int(peer.ids), peer.peers
        x, y = next(batches)
        run = _Run(peer, x.chunk(self.microbatches), y.chunk(self.microbatches), table, self)
        for tick in range(len(table.ticks[0])):
            forward, back = yield from run.do(table.ticks[stage][tick])
            ops = [own[tick] for own in table.ticks]
            yield from self.wait(peer, [None if op is None else op.piece for op in ops])
            came: dict[str, Tensor] = yield Pass.of(forward, back)
            run.receive("forward", came, table.ticks[(stage - 1) % n][tick], wraps=stage == 0)
            run.receive("back", came, table.ticks[(stage + 1) % n][tick], wraps=stage == n - 1)
        peer.apply((yield from self.summed(run.gradients())))

    # -- what is otherwise where the peers of a stage compute it together

    share: ClassVar[float] = 1.0  # of a stage, that a peer computes

    def through(self, peer: Peer, piece: int, x: Tensor, params: Params) -> Generator[Any, Any, Tensor]:
        """What a piece of the peer's layers makes of x."""
        for layer in peer.pieces[piece]:
            x = peer.run(layer, x, params)
        yield from ()
        return x

    def wait(self, peer: Peer, pieces: Sequence[int | None]) -> Round:
        """What a peer yields in a tick after its own work, given the piece that each stage works on."""
        yield from ()

    def summed(self, found: Params) -> Generator[Any, Any, Params]:
        """The gradients, of which peers of a stage may have parts."""
        yield from ()
        return found

    def predict(self, peer: Peer, inputs: Tensor) -> Generator[Any, Any, Tensor]:
        """The logits: inputs go through all pieces, and their outputs once round the ring, to everyone."""
        n, stage, last = peer.peers, int(peer.ids), peer.peers * len(peer.pieces) - 1
        x: Tensor | None = inputs if stage == 0 else None
        logits = inputs
        for at in range(last + n):
            mine = at % n == stage and x is not None
            if mine and at <= last and x is not None:
                x = yield from self.through(peer, at // n, x, peer.params)
            yield from self.wait(peer, [at // n if k == at % n and at <= last else None for k in range(n)])
            if at >= last and mine and x is not None:
                logits = x
            came = yield Pass.of(x if mine else None, None)
            x = came.get("forward")
        return logits


class _Run:
    """One batch on its way through a stage: what has arrived, and what is open."""

    def __init__(
        self, peer: Peer, xs: tuple[Tensor, ...], ys: tuple[Tensor, ...], table: PipelineTable, pipeline: Pipeline
    ) -> None:
        self._peer, self._ys, self._table, self._pipeline = peer, ys, table, pipeline
        self._weights: Tensor | None = None  # of the microbatches in the loss, once it is known what outputs are like
        self._params = peer.leaves(peer.params)
        self._arrived: dict[tuple[str, int, int], Tensor] = {}
        if int(peer.ids) == 0:
            self._arrived |= {("forward", k, 0): x for k, x in enumerate(xs)}
        self._open: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor | None]] = {}
        self._tapes: dict[tuple[int, int], Tape] = {}  # of what went forward with messages

    def do(self, op: Op | None) -> Generator[Any, Any, tuple[Tensor | None, Tensor | None]]:
        """Do what the table says; what goes on and what goes back from it."""
        if op is None:
            return None, None
        ops = len(self._ys) * (3 if self._table.split else 2) * self._peer.peers * self._table.pieces
        self._peer.count(self._pipeline.share / ops)
        kind, k, piece = op
        if kind == "F":
            return (yield from self._forward(k, piece)), None
        if kind == "B":
            return None, (yield from self._back(k, piece))
        _, out, y = self._open.pop((k, piece))
        self._collect(self._peer.pull(out, self._params, y))
        return None, None

    def _forward(self, k: int, piece: int) -> Generator[Any, Any, Tensor | None]:
        start = self._peer.leaves({"": self._arrived.pop(("forward", k, piece))})[""]
        tape = Tape()
        out = yield from tape.forward(self._pipeline.through(self._peer, piece, start, self._params))
        if tape.sent:
            self._tapes[k, piece] = tape
        ends = int(self._peer.ids) == self._peer.peers - 1 and piece == self._table.pieces - 1
        if ends:
            if self._weights is None:
                self._weights = self._peer.weights(torch.cat(self._ys), len(self._ys), 0, out)
            loss = self._peer.loss((start, self._ys[k]), out, self._weights[k])
            out = loss * self._pipeline.share / len(self._ys)
        self._open[k, piece] = start, out, None
        return None if ends else out.detach()

    def _back(self, k: int, piece: int) -> Generator[Any, Any, Tensor | None]:
        start, out, _ = self._open.pop((k, piece))
        y = self._arrived.pop(("back", k, piece), None)  # None of the loss itself
        first = int(self._peer.ids) == 0 and piece == 0
        if (k, piece) in self._tapes:
            back = self._tapes.pop((k, piece)).backward(out, y)  # the leaves collect their gradients
            del out  # with which its layers' activations would stay
            yield from back
            return None if first else start.grad
        wanted = {"": start} if self._table.split else self._params | {"": start}
        if self._table.split:
            self._open[k, piece] = start, out, y
        found = self._peer.pull(out, wanted, y, again=self._table.split)
        before = found.pop("", None)
        self._collect(found)
        return None if first else before

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
