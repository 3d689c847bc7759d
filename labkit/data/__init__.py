"""Data: sources that are there offline, and how they are dealt to peers."""

from labkit.data.batches import batches
from labkit.data.dataset import IID, Dataset, Sharding
from labkit.data.sources import SOURCES, from_tensors, load

__all__ = ["IID", "SOURCES", "Dataset", "Sharding", "batches", "from_tensors", "load"]
