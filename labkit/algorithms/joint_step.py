"""A step of peers that compute one loss together: what is theirs alone is how they go forward."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from torch import Tensor

from labkit.algorithms.base import Batch, Peer, Round
from labkit.algorithms.holds import Params
from labkit.exchange.tape import gradients

Forward = Callable[[Peer, Tensor, Params], Generator[Any, Any, Tensor]]


def joint_step(peer: Peer, batch: Batch, forward: Forward, weight: Callable[[Tensor], Tensor] | None = None) -> Round:
    """Go forward with messages and back by their adjoints; the loss is the sum of the peers' shares.

    `weight` tells from a peer's logits how much more than an n-th its loss counts.
    """
    mine = peer.leaves(peer.params)

    def share() -> Generator[Any, Any, Tensor]:
        logits = yield from forward(peer, batch[0], mine)
        return peer.loss(batch, logits, None if weight is None else weight(logits)) / peer.peers

    _, found = yield from gradients(share(), mine, peer.rows)
    peer.apply(found)
