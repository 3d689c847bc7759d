"""PostLocalSGD: synchronise every step at first, when it matters most, and every H steps from then on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.localsgd import LocalSGD
from labkit.checks import whole
from labkit.exchange import Kind, Mean


@dataclass(frozen=True)
class PostLocalSGD(LocalSGD):
    """H(t) = 1 while t ≤ t′, and H(t) = H after  (Lin et al., arXiv:1808.07217, post-local SGD).

    The first phase, `warmup` rounds of `every` steps, is AllReduce; then it is LocalSGD. The paper puts t′ where the
    learning rate is first lowered. Raises SettingError for settings out of range.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, PostLocalSGD(every=10, warmup=2), peers=4, rounds=10).result()
    History: PostLocalSGD, 4 peers, after 10 rounds test accuracy 8...%, 0.11 MB sent per peer
    """

    warmup: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self.warmup, "warmup", least=0)

    def means_of(self, number: int) -> tuple[Kind, ...]:  # type: ignore[override]  # a trait may be a method
        return (Kind.GRADIENT,) * self.every if number <= self.warmup else (Kind.CHANGE,)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        if peer.number > self.warmup:
            yield from super().round(peer, batches)
            return
        for batch in islice(batches, self.every):
            gradients = yield Mean(peer.gradients(peer.loss(batch)), kind=Kind.GRADIENT)
            peer.apply(gradients)
