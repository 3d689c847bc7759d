"""Algorithms and settings that the tests of asynchronous peers share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

import labkit as lk
from labkit.algorithms import ADPSGD, ParameterServer
from labkit.exchange import Mean, Push

FOREVER = 1_000_000
SERVED = [ParameterServer(policy) for policy in (lk.BSP(), lk.SSP(1), lk.ASP())]


@dataclass(frozen=True)
class Wrong:
    """An asynchronous algorithm that does one thing it may not."""

    what: str
    asynchronous: ClassVar[bool] = True

    def round(self, peer, batches):
        gradients = peer.gradients(peer.loss(next(batches)))
        if self.what == "nothing":
            return
        if self.what == "a mean":
            peer.params = yield Mean(peer.params)
            return
        peer.params = yield Push(gradients)
        if self.what == "more":
            peer.step(peer.loss(next(batches)))
        if self.what == "twice":
            peer.params = yield Push(gradients)

    def server(self, weights, optimizer, peers):
        return ParameterServer().server(weights, optimizer, peers)


@dataclass(frozen=True)
class FromApart(ADPSGD):
    """AD-PSGD of peers that start from different weights."""

    starts_apart: ClassVar[bool] = True


class Number(torch.nn.Module):
    """One weight w, which is the output whatever the input."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        return self.w.expand(len(x), 10)


def linear(logits, targets):
    """A loss whose gradient is 1 at every w."""
    return logits.mean()


UNIT = {"optimizer": partial(torch.optim.SGD, lr=1.0), "loss": linear}  # every step takes 1 away from w
STILL = partial(torch.optim.SGD, lr=0.0)
