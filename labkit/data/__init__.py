"""Data: sources that are there offline or of your own, and how they are dealt to peers."""

from labkit.data.batches import batches
from labkit.data.dataset import Dataset
from labkit.data.noise import noisy
from labkit.data.shards import IID, ByLabel, Dirichlet, Quantity, Replicated, Sharding
from labkit.data.sources import SOURCES, load
from labkit.data.tensors import Tensors, from_tensors

__all__ = [
    "IID",
    "SOURCES",
    "ByLabel",
    "Dataset",
    "Dirichlet",
    "Quantity",
    "Replicated",
    "Sharding",
    "Tensors",
    "batches",
    "from_tensors",
    "load",
    "noisy",
]
