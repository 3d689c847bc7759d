"""The loss of learning from a teacher's predicted probabilities (soft targets), which several algorithms share."""

from __future__ import annotations

from torch import Tensor

from labkit.algorithms.base import Peer


def cross_entropy(peer: Peer, taught: Tensor, logits: Tensor) -> Tensor:
    """−Σ_c p_c log q_c with p = `taught` and q = softmax of `logits`, the mean over examples, [] or [K].

    Classes come last, [B, C]; of sequences [B, T, C] the mean is also one over positions.
    """
    return mean(peer, -(taught * logits.log_softmax(-1)).sum(-1))


def mean(peer: Peer, each: Tensor) -> Tensor:
    """The mean of a tensor [B, …], or of each of K stacked peers' [K, B, …]."""
    return each.flatten(peer.ids.dim()).mean(-1)
