"""LocalSGD: communicate less, by averaging parameters only every H steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch

from labkit import tree
from labkit.algorithms.base import Batch, Peer, Round
from labkit.checks import whole
from labkit.exchange import Kind, Mean


@dataclass(frozen=True)
class LocalSGD:
    """H local steps, then average:  xᵢ ← (1/n) Σⱼ xⱼ   (Stich, arXiv:1805.09767, Alg. 1).

    `every` is H. With `every=1` and plain SGD it is AllReduce; it sends 1/H of AllReduce's bytes per step.
    Raises SettingError for `every` below one.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, LocalSGD(every=10), peers=4, rounds=10).result()
    History: LocalSGD, 4 peers, after 10 rounds test accuracy 8...%, 0.04 MB sent per peer
    """

    means_of: ClassVar[tuple[Kind, ...]] = (Kind.CHANGE,)

    every: int = 8

    def __post_init__(self) -> None:
        whole(self.every, "every")

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        start = tree.map(torch.clone, peer.params)  # for wrappers that act on the change since then
        for batch in islice(batches, self.every):
            peer.step(peer.loss(batch))
        peer.params = yield Mean(peer.params, start=start)
