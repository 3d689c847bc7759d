"""Loaded: a torch dataset of items that have numbers, each loaded when a batch wants it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from labkit.data.batches import Batches, Indices
from labkit.data.batchwise import Batch, Batchwise
from labkit.data.faults import Fault, collated, failed
from labkit.data.loading import ahead as loaded_ahead
from labkit.data.loading import in_process, numbered
from labkit.data.randomness import Randomness
from labkit.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Loaded(Batchwise):
    """A map-style torch dataset, of which peers get shards of item numbers."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def y(self) -> Tensor:  # type: ignore[override]
        """The targets of all items, without loading these; DataError where the torch dataset does not tell."""
        targets = self.targets
        if targets is None:
            raise DataError(
                f"{self.name} does not tell its class numbers without loading every item: give the torch dataset an "
                "attribute `targets`, as torchvision's have, or deal with IID() or Quantity(alpha)."
            )
        return targets

    def opened(self, indices: Batches, ahead: bool) -> Iterator[Batch]:
        source = _Batches(self, indices.key)
        if ahead and self.workers:
            return loaded_ahead(source, indices, self.workers, self.name)
        return in_process(map(source.__getitem__, numbered(indices)))

    def first_two(self) -> list[Any] | Fault:
        whole = self.targets is not None and self.targets.dim() == 1 and not self.targets.is_floating_point()
        one = _item(self, int(self.targets.argmax()) if whole and self.targets is not None else 0)
        return one if isinstance(one, Fault) else [one, one]


class _Batches(TorchDataset[Any]):
    """Whole batches by (batch number, item numbers); what is random in them follows from `key` and the batch number."""

    def __init__(self, dataset: Loaded, key: tuple[int, int]) -> None:
        self._dataset, self._key, self._random = dataset, key, Randomness()

    def __getitem__(self, request: tuple[int, Indices]) -> Batch | Fault:
        number, at = request
        items = []
        with self._random.anew(*self._key, number):
            for k in at.tolist():
                item = _item(self._dataset, k)
                if isinstance(item, Fault):
                    return item
                items.append(item)
        return collated(items, self._dataset.name)


def _item(dataset: Loaded, k: int) -> Any | Fault:
    try:
        return dataset.items[k]
    except Exception as error:  # noqa: BLE001  whatever the user's dataset raises
        return failed(f"Item {k} of {dataset.name}", error, "correct the dataset's __getitem__")
