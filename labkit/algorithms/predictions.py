"""Learning from a teacher's predicted probabilities (soft targets), which several algorithms share."""

from __future__ import annotations

from torch import Tensor

from labkit.algorithms.base import Peer


def probabilities(peer: Peer, logits: Tensor) -> Tensor:
    """The softmax over classes, in dimension `peer.classes`; of an algorithm that has the trait `class_scores`."""
    return logits.softmax(_classes(peer))


def cross_entropy(peer: Peer, taught: Tensor, logits: Tensor) -> Tensor:
    """−Σ_c p_c log q_c with p = `taught` and q = softmax of `logits`, the mean over examples, [] or [K].

    Of sequences and pictures, [B, T, C] or [B, C, …], the mean is also one over positions.
    """
    at = _classes(peer)
    return mean(peer, -(taught * logits.log_softmax(at)).sum(at))


def mean(peer: Peer, each: Tensor) -> Tensor:
    """The mean of a tensor [B, …], or of each of K stacked peers' [K, B, …]."""
    return each.flatten(peer.ids.dim()).mean(-1)


def _classes(peer: Peer) -> int:
    assert peer.classes is not None  # others are refused before anything runs
    return peer.classes
