"""Messages: what peers exchange, each with its formula, its three forms and its cost in one file."""

from labkit.exchange import topologies
from labkit.exchange.collectives import Move
from labkit.exchange.gather import Gather
from labkit.exchange.mean import Mean
from labkit.exchange.message import Message, Transfer
from labkit.exchange.mix import Mix
from labkit.exchange.permute import Permute, pairs, shift
from labkit.exchange.topology import Topology
from labkit.exchange.walk import walk

__all__ = [
    "Gather",
    "Mean",
    "Message",
    "Mix",
    "Move",
    "Permute",
    "Topology",
    "Transfer",
    "pairs",
    "shift",
    "topologies",
    "walk",
]
