"""FedMD: models of any architecture learn from the mean of their predictions on public inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.predictions import mean
from labkit.checks import whole
from labkit.exchange import Kind, Mean


@dataclass(frozen=True)
class FedMD:
    """f̃(x) = (1/n) Σᵢ fᵢ(x) on public x; digest: fᵢ → f̃; revisit: train on private data  (arXiv:1910.03581, Alg. 1).

    f are class scores before the softmax, and to digest is to lessen the mean of |fᵢ − f̃|, as in the authors' code,
    which is good for outputs of any other task too.
    `public` batches are digested a round, then `every` private ones are revisited. The paper first trains all models
    on public labels, which here do not exist: the first `warmup` rounds are private training instead. Architectures
    may differ. Raises SettingError for settings out of range, and a run without public inputs DataError.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, FedMD(public=2), peers=4, rounds=10, public=digits).result()
    History: FedMD, 4 peers, after 10 rounds test accuracy 8...%, 0.03 MB sent per peer
    """

    starts_apart: ClassVar[bool] = True

    means_of: ClassVar[tuple[Kind, ...]] = (Kind.PREDICTIONS,)

    every: int = 8
    public: int = 4
    warmup: int = 2

    def __post_init__(self) -> None:
        whole(self.every, "every")
        whole(self.public, "public")
        whole(self.warmup, "warmup", least=0)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        inputs = list(islice(peer.public, self.public)) if peer.number > self.warmup else []
        if inputs:
            examples = peer.ids.dim()  # the dimension of them, behind that of stacked peers
            with peer.evaluating():
                scores = torch.cat([peer.logits(x) for x in inputs], dim=examples)  # [public · B, C]
            consensus = yield Mean(scores, kind=Kind.PREDICTIONS)
            for x, agreed in zip(inputs, consensus.chunk(self.public, dim=examples), strict=True):
                peer.step(mean(peer, (peer.logits(x) - agreed).abs()))
            peer.count(self.public)
        for batch in islice(batches, self.every):
            peer.step(peer.loss(batch))
