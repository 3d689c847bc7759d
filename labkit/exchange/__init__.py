"""Messages: what peers exchange, each with its formula, its three forms and its cost in one file."""

from labkit.exchange import topologies
from labkit.exchange.all_reduce_steps import walk
from labkit.exchange.along import Along, Axes
from labkit.exchange.barrier import Barrier
from labkit.exchange.collectives import Move
from labkit.exchange.compression import QSGD, Coded, Compressor, Half, RandomK, Sign, TopK
from labkit.exchange.gather import Gather
from labkit.exchange.linear import AllGather, AllToAll, Copy, Linear, ReduceScatter, Shift, Sum
from labkit.exchange.mean import HalfMean, Kind, Mean
from labkit.exchange.message import Message, Served, Transfer
from labkit.exchange.mix import Mix
from labkit.exchange.passing import Pass
from labkit.exchange.permute import Permute, pairs, shift
from labkit.exchange.requests import Pair, Push, Request, Server
from labkit.exchange.robust import CoordinateMedian, Krum, RobustMean, Rule, TrimmedMean
from labkit.exchange.secure import ModularSum
from labkit.exchange.topology import Topology

__all__ = [
    "QSGD",
    "AllGather",
    "AllToAll",
    "Along",
    "Axes",
    "Barrier",
    "Coded",
    "Compressor",
    "CoordinateMedian",
    "Copy",
    "Gather",
    "Half",
    "HalfMean",
    "Kind",
    "Krum",
    "Linear",
    "Mean",
    "Message",
    "Mix",
    "ModularSum",
    "Move",
    "Pair",
    "Pass",
    "Permute",
    "Push",
    "RandomK",
    "ReduceScatter",
    "Request",
    "RobustMean",
    "Rule",
    "Served",
    "Server",
    "Shift",
    "Sign",
    "Sum",
    "TopK",
    "Topology",
    "Transfer",
    "TrimmedMean",
    "pairs",
    "shift",
    "topologies",
    "walk",
]


def __dir__() -> list[str]:
    return __all__
