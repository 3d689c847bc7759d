"""Independent: every peer trains alone on its own shard; the baseline of everything that communicates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from labkit.algorithms.base import Batch, Peer, Round
from labkit.checks import whole


@dataclass(frozen=True)
class Independent:
    """xᵢ ← xᵢ − η ∇ℓᵢ(xᵢ), `every` times a round, and not one byte sent.

    Raises SettingError for `every` below one.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, Independent(every=10), peers=4, rounds=10).result()
    History: Independent, 4 peers, after 10 rounds test accuracy 8...%, 0.00 MB sent per peer
    """

    every: int = 1

    def __post_init__(self) -> None:
        whole(self.every, "every")

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        for batch in islice(batches, self.every):
            peer.step(peer.loss(batch))
        yield from ()  # no message, hence nothing to wait for
