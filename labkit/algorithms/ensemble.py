"""Ensemble: peers that train independently, and whose predictions are averaged."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from labkit.algorithms.base import Peer
from labkit.algorithms.independent import Independent
from labkit.exchange import Kind, Mean, Message


@dataclass(frozen=True)
class Ensemble(Independent):
    """p(y|x) = (1/n) Σᵢ pᵢ(y|x), of peers trained apart from different weights  (arXiv:1612.01474, Sec. 2.4).

    Of labels that are yes or no pᵢ is the sigmoid of an output, or the output where that is a probability itself; of
    real numbers the mean is that of the outputs. Each member has its own shard; in the paper each sees the whole set in
    an order of its own, which is `shards=lk.data.Replicated(common_order=False)`.
    Raises SettingError for `every` below one.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, Ensemble(every=10), peers=4, rounds=10).result()
    History: Ensemble, 4 peers, after 10 rounds test accuracy 8...%, 0.00 MB sent per peer
    """

    starts_apart: ClassVar[bool] = True

    means_of: ClassVar[tuple[Kind, ...]] = (Kind.PREDICTIONS,)

    def predict(self, peer: Peer, inputs: Tensor) -> Generator[Message, Any, Tensor]:
        """The mean of all peers' predictions, [B, …], as outputs: log p of classes, logit p of labels."""
        outputs = peer.logits(inputs)
        if peer.classes is not None:
            outputs = outputs.softmax(peer.classes)
        elif peer.labels:
            outputs = outputs.sigmoid()
        mean: Tensor = yield Mean(outputs, kind=Kind.PREDICTIONS)
        if peer.classes is not None:
            return mean.log()
        return mean.logit(torch.finfo(mean.dtype).eps) if peer.labels else mean
