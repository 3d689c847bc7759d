"""Algorithms: one file, one peer's round, the paper's equation beside the code."""

from labkit.algorithms.allreduce import AllReduce
from labkit.algorithms.base import Algorithm, Batch, Peer, Round
from labkit.algorithms.byzantine import Byzantine
from labkit.algorithms.compressed import Compressed
from labkit.algorithms.independent import Independent
from labkit.algorithms.localsgd import LocalSGD
from labkit.algorithms.private import Private
from labkit.algorithms.robust import Robust
from labkit.algorithms.secure import Secure
from labkit.algorithms.wrapper import Wrapper

__all__ = [
    "Algorithm",
    "AllReduce",
    "Batch",
    "Byzantine",
    "Compressed",
    "Independent",
    "LocalSGD",
    "Peer",
    "Private",
    "Robust",
    "Round",
    "Secure",
    "Wrapper",
]
