"""EASGD: workers train on their own, and an elastic force pulls them and a common centre together."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from torch import Tensor

from labkit import tree
from labkit.algorithms.base import Batch, Peer, Round
from labkit.checks import number, whole
from labkit.exchange import Kind, Mean, Message


@dataclass(frozen=True)
class EASGD:
    """xᵢ ← xᵢ − η ∇ℓᵢ(xᵢ) − α (xᵢ − x̃),  x̃ ← (1−β) x̃ + β (1/n) Σᵢ xᵢ  (Zhang et al., arXiv:1412.6651, Eq. 5, 6).

    Synchronous: all use the values from before the exchange, which takes place at the first of `every` steps. By
    default α = β/n, the elastic symmetry in which what a worker loses the centre wins. With α = 0 the workers are
    Independent. What is tested is the centre x̃; the models that come back are the workers'.
    Raises SettingError for settings out of range.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, EASGD(every=10), peers=4, rounds=10).result()
    History: EASGD, 4 peers, after 10 rounds test accuracy 8...%, 0.04 MB sent per peer
    """

    means_of: ClassVar[tuple[Kind, ...]] = (Kind.CHANGE,)

    every: int = 8
    beta: float = 0.9
    alpha: float | None = None

    def __post_init__(self) -> None:
        whole(self.every, "every")
        number(self.beta, "beta", most=1, above=True)
        if self.alpha is not None:
            number(self.alpha, "alpha", most=1)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        alpha = self.beta / peer.present if self.alpha is None else self.alpha
        centre = peer.shared["params"]
        gradients = peer.gradients(peer.loss(next(batches)))  # at xᵢ as it is before the exchange
        mean = yield Mean(peer.params, start=centre)
        peer.params = tree.map(lambda x, c: x - alpha * (x - c), peer.params, centre)
        peer.shared["params"] = tree.map(lambda c, m: (1 - self.beta) * c + self.beta * m, centre, mean)
        peer.apply(gradients)
        for batch in islice(batches, self.every - 1):
            peer.step(peer.loss(batch))

    def predict(self, peer: Peer, inputs: Tensor) -> Generator[Message, Any, Tensor]:
        """The centre's outputs."""
        yield from ()  # everybody knows the centre
        return peer.logits(inputs, peer.shared["params"])
