"""Messages: what peers exchange, each with its formula, its three forms and its cost in one file."""

from labkit.exchange.collectives import Move
from labkit.exchange.gather import Gather
from labkit.exchange.mean import Mean
from labkit.exchange.message import Message, Transfer
from labkit.exchange.walk import walk

__all__ = ["Gather", "Mean", "Message", "Move", "Transfer", "walk"]
