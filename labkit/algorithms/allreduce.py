"""AllReduce: data-parallel SGD; the peers average gradients at every step and so stay one model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from labkit.algorithms.base import Batch, Peer, Round
from labkit.exchange import Mean
from labkit.exchange.collectives import form


@dataclass(frozen=True)
class AllReduce:
    """x ← x − η (1/n) Σⱼ ∇ℓⱼ(x): with equal batches, exactly SGD on the joined batch (arXiv:1706.02677, §2).

    On real workers torch's DistributedDataParallel does this, with buckets that overlap the backward pass; this
    generator is its specification, and a test holds the two equal. With a `form` of "naive", "ring" or "tree" the
    workers run the generator, and gradients travel by that form of all-reduce.
    """

    form: str = "native"

    def __post_init__(self) -> None:
        form(self.form)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        gradients = yield Mean(peer.gradients(peer.loss(next(batches))), form=self.form)
        peer.apply(gradients)
