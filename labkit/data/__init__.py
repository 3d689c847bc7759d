"""Data: sources that are there offline or of your own, and how they are dealt to peers."""

from labkit.data.batches import Batches, batches
from labkit.data.dataset import IID, Dataset, Sharding
from labkit.data.functions import from_file, from_function
from labkit.data.shards import ByLabel, Dirichlet, Quantity, Replicated, WithTest
from labkit.data.sources import SOURCES, load
from labkit.data.tensors import Tensors, from_tensors, noisy
from labkit.data.torch_datasets import from_torch

__all__ = [
    "IID",
    "SOURCES",
    "Batches",
    "ByLabel",
    "Dataset",
    "Dirichlet",
    "Quantity",
    "Replicated",
    "Sharding",
    "Tensors",
    "WithTest",
    "batches",
    "from_file",
    "from_function",
    "from_tensors",
    "from_torch",
    "load",
    "noisy",
]


def __dir__() -> list[str]:
    return __all__
