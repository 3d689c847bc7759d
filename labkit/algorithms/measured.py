"""Measured: all-reduce whose peers compare their own gradient with the mean, so that its noise scale is known."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labkit import tree
from labkit.algorithms.allreduce import AllReduce
from labkit.algorithms.base import Peer
from labkit.algorithms.wrapper import Exchange, Wrapper
from labkit.errors import SettingError
from labkit.exchange import Mean
from labkit.history.noise import NOISE, SIGNAL, estimates
from labkit.tree import Tree


@dataclass(frozen=True)
class Measured(Wrapper):
    """AllReduce that also tells how large a batch is useful, and so how many workers are: `history.noise_scale`.

    Of each peer's gradient g (of b examples) and their mean ḡ (of B = n · b) it takes the squared norms: tr Σ is about
    (|g|² − |ḡ|²) / (1/b − 1/B), and |G|² about (B |ḡ|² − b |g|²) / (B − b). S. McCandlish et al., arXiv:1812.06162,
    appendix A.1. That costs two norms a step, and no message; the training is the same, DistributedDataParallel's on
    workers too. The estimates of each peer are in the rows, as "gradient noise" and "gradient signal".

    Raises SettingError for an algorithm other than AllReduce, and when the run is planned for one peer alone.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> history = lk.train(model, digits, Measured(AllReduce()), peers=4, rounds=100).result()
    >>> 0.5 < history.noise_scale.workers(batch_size=32) < 50
    True
    """

    algorithm: AllReduce

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.algorithm, AllReduce):
            raise SettingError(
                f"Measured compares the gradients that AllReduce averages, and {self.algorithm!r} is another "
                "algorithm: give Measured(AllReduce()), and wrap that."
            )

    def check(self, peers: int) -> None:
        super().check(peers)
        if peers < 2:
            raise SettingError(
                "Measured compares each peer's gradient with the mean of all, and there is one peer: take two, or more."
            )

    def exchange(self, mean: Mean, peer: Peer, index: int) -> Exchange:
        reply: Tree = yield mean
        lead, examples = peer.ids.dim(), self.algorithm.accumulate * peer.batch_size
        log_noise(peer, tree.squares(mean.x, lead), tree.squares(reply, lead), examples)
        return reply


def log_noise(peer: Peer, own: Tensor, mean: Tensor, examples: int) -> None:
    """Log what the squared norms of a peer's gradient, of so many examples, and of the mean of all tell of noise."""
    noise, signal = estimates(own, mean, examples, peer.peers * examples)
    peer.log(NOISE, noise)
    peer.log(SIGNAL, signal)
