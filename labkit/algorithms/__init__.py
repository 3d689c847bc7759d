"""Algorithms: one file, one peer's round, the paper's equation beside the code."""

from labkit.algorithms.allreduce import AllReduce
from labkit.algorithms.base import Algorithm, Batch, Peer, Round
from labkit.algorithms.independent import Independent
from labkit.algorithms.localsgd import LocalSGD

__all__ = ["Algorithm", "AllReduce", "Batch", "Independent", "LocalSGD", "Peer", "Round"]
