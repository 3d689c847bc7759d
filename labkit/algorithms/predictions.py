"""Learning from a teacher's predicted probabilities (soft targets), which several algorithms share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from labkit.algorithms.base import Peer
from labkit.errors import ModelError
from labkit.text import a


def outputs_of(out: Any, what: str = "The model") -> Tensor:
    """The outputs proper in what a model's forward returned: a tensor, `out["logits"]`, `out.logits` or `out[0]`.

    Raises ModelError where none of these is a tensor.

    >>> import torch
    >>> outputs_of({"logits": torch.zeros(2, 3), "hidden": torch.zeros(2, 8)}).shape
    torch.Size([2, 3])
    """
    if isinstance(out, Tensor):
        return out
    found = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    if found is None and isinstance(out, tuple | list) and out:
        found = out[0]
    if not isinstance(found, Tensor):
        raise ModelError(
            f"{what} returns {a(type(out).__name__)} without a tensor of outputs: let forward return a tensor, a "
            'tuple that begins with it, or a dict or an object with "logits".'
        )
    return found


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
