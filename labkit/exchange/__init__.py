"""Messages: what peers exchange, each with its formula, its three forms and its cost in one file."""

from labkit.exchange.gather import Gather
from labkit.exchange.mean import Mean
from labkit.exchange.message import Message, Transfer

__all__ = ["Gather", "Mean", "Message", "Transfer"]
