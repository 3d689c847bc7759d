"""CoTeaching: two peers pick for each other the examples whose labels they believe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from labkit.algorithms.base import Batch, Peer, Round
from labkit.checks import number, whole
from labkit.exchange import Kind, Permute, pairs


@dataclass(frozen=True)
class CoTeaching:
    """Step on the R(T)·B examples of the batch on which the *partner's* losses are least  (arXiv:1804.06872, Alg. 1).

    R(T) = 1 − τ min(T/T_k, 1) after T epochs: networks learn what is regular first, and what is wrongly labelled last.
    τ is `forget`, the share of labels that are wrong; T_k is `ramp`. Peers 0 and 1, 2 and 3, … are partners, and may
    differ in architecture; what they send is the numbers of examples within the batch.
    Raises SettingError for settings out of range and for an odd number of peers.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, lk.data.noisy(digits, 0.2), CoTeaching(forget=0.2), peers=2, rounds=100).result()
    History: CoTeaching, 2 peers, after 100 rounds test accuracy 8...%, 0.03 MB sent per peer
    """

    starts_apart: ClassVar[bool] = True
    same_batches: ClassVar[bool] = True

    means_of: ClassVar[tuple[Kind, ...]] = ()

    forget: float = 0.2
    ramp: int = 10

    def __post_init__(self) -> None:
        number(self.forget, "forget", most=1)
        whole(self.ramp, "ramp")

    def check(self, peers: int) -> None:
        """Refuse a number of peers that does not make pairs."""
        pairs(peers)

    def kept(self, peer: Peer) -> float:
        """R(T), the share of each batch that is learnt from in this round."""
        epoch = self.epoch(peer)
        return 1 - self.forget * min(epoch / self.ramp, 1.0)

    def epoch(self, peer: Peer) -> int:
        """T, the epochs that are finished; all peers see the same batches, one a round."""
        per_epoch = torch.as_tensor(peer.local_steps(1, epochs=1)).reshape(-1)[0]
        return int((peer.number - 1) // per_epoch)

    def round(self, peer: Peer, batches: Iterator[Batch]) -> Round:
        inputs, _ = batch = next(batches)
        logits = peer.logits(inputs)
        losses = peer.losses(batch, logits)  # [B]
        keep = max(1, int(self.kept(peer) * losses.shape[-1]))
        left_out = ~peer.counted(batch, logits)  # which is not easy
        easiest = losses.detach().masked_fill(left_out, float("inf")).argsort(stable=True)  # [B]
        chosen = easiest[..., :keep]  # [R·B]
        theirs = yield Permute(chosen, pairs(peer.present))
        peer.step(losses.gather(-1, theirs).mean(-1))
