"""Collation: the items of a torch dataset become one batch, inputs [B, …] and targets [B, …], padded where asked."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from labkit.data.inputs import Inputs
from labkit.errors import DataError
from labkit.text import a, in_words

Batch = tuple[Any, Tensor]  # inputs, a tensor or several as Inputs, and targets
_TARGETS = ("labels", "label", "targets", "target")  # what a dict calls them
_LEFT_OUT = -100  # the class number that losses ignore


@dataclass(frozen=True)
class Collation:
    """How items become a batch: by torch's default_collate, by a function of the user's own, or padded.

    `pad` is what fills up inputs, or of each by name; masks are filled with 0 and integer targets with −100, which
    losses ignore, unless they are named.
    """

    collate: Callable[[list[Any]], Any] | None = None
    pad: float | Mapping[str, float] | None = None

    def __call__(self, items: Sequence[Any], name: str) -> Batch:
        """Raises DataError where the items are no examples, or do not fit together."""
        if self.collate is not None:
            try:
                batch = self.collate(list(items))
            except Exception as error:  # noqa: BLE001  whatever the function raises
                raise failed(f"collate_fn of {name}", error, "let it take a list of items") from None
            return separated(batch, name, "collate_fn")
        odd = next((item for item in items if not _is_example(item)), None)
        if odd is not None:
            raise DataError(
                f"{name} gives items of type {type(odd).__name__}: let each be a pair (input, target) of tensors, "
                'arrays or numbers, several inputs and a target, or a dict with "labels".'
            )
        try:
            batch = self._padded(items) if self.pad is not None else default_collate([_plain(item) for item in items])
        except Exception as error:  # noqa: BLE001  whatever the items do when they are put together
            raise _unfit(items, error, name) from None
        try:
            return separated(batch, name, "a batch")
        except DataError:
            if isinstance(items[0], Mapping) and not set(_TARGETS) & set(items[0]):
                raise
            parts = items[0].values() if isinstance(items[0], Mapping) else items[0]
            kinds = " and ".join(type(value).__name__ for value in parts)
            raise DataError(
                f"{name} gives pairs of {kinds}: let each be a pair of tensors, arrays or numbers."
            ) from None

    def _padded(self, items: Sequence[Any]) -> Any:
        if isinstance(items[0], Mapping):
            return {key: self._column([item[key] for item in items], key, key in _TARGETS) for key in items[0]}
        *inputs, target = zip(*items, strict=True)
        columns = []
        for column in inputs:
            inner = isinstance(column[0], Mapping)
            columns.append(self._padded_part(column) if inner else self._column(column, "", False))
        return (*columns, self._column(target, "", True))

    def _padded_part(self, items: Sequence[Any]) -> dict[str, Tensor]:
        return {key: self._column([item[key] for item in items], key, False) for key in items[0]}

    def _column(self, values: Sequence[Any], key: str, is_target: bool) -> Tensor:
        tensors = [torch.as_tensor(value) for value in values]
        if all(tensor.shape == tensors[0].shape for tensor in tensors):
            return torch.stack(tensors)
        whole = not tensors[0].is_floating_point()
        if isinstance(self.pad, Mapping) and key in self.pad:
            value = float(self.pad[key])
        elif is_target:
            value = _LEFT_OUT if whole else 0.0
        else:
            value = 0.0 if "mask" in key or isinstance(self.pad, Mapping) or self.pad is None else float(self.pad)
        return pad_sequence(tensors, batch_first=True, padding_value=value)


def separated(batch: Any, name: str, what: str) -> Batch:
    """Inputs and targets of a batch: a pair, several inputs and targets, or a dict with targets called "labels"."""
    if isinstance(batch, Mapping):
        key = next((it for it in _TARGETS if it in batch), None)
        if key is None:
            raise DataError(f'{name} gives dicts without "labels": let one of {", ".join(batch)} be called so.')
        inputs: Any = {it: value for it, value in batch.items() if it != key}
        y = batch[key]
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        *several, y = batch
        inputs = several[0] if len(several) == 1 else tuple(several)
    else:
        raise DataError(f"{what} of {name} gives {a(type(batch).__name__)}: let it give a pair of inputs and targets.")
    x = _together(inputs)
    if x is None or not isinstance(y, Tensor):
        kinds = f"{type(inputs).__name__} and {type(y).__name__}"
        raise DataError(f"{what} of {name} has {kinds}: let it have tensors of inputs and of targets.")
    if len(x) != len(y):
        raise DataError(f"{name} gives {len(x)} inputs and {len(y)} targets in one batch: give one for each example.")
    return x, y


def _together(inputs: Any) -> Tensor | Inputs | None:
    """One tensor, or several as Inputs; None for all else."""
    if isinstance(inputs, Tensor):
        return inputs
    if isinstance(inputs, Mapping) and inputs:
        parts = list(inputs.values())
        fits = all(isinstance(it, str) for it in inputs)
    else:
        parts, fits = (list(inputs), bool(inputs)) if isinstance(inputs, tuple | list) else ([], False)
    if not fits or not all(isinstance(it, Tensor) and it.dim() and len(it) == len(parts[0]) for it in parts):
        return None
    return Inputs(inputs if isinstance(inputs, Mapping) else tuple(inputs))


def _is_example(item: Any) -> bool:
    return isinstance(item, Mapping) or (isinstance(item, tuple | list) and len(item) >= 2)


def _plain(item: Any) -> Any:
    """An item whose lists of numbers, as tokenisers give them, are tensors: torch would turn them on their side."""
    if isinstance(item, Mapping):
        return {key: torch.as_tensor(value) if isinstance(value, list) else value for key, value in item.items()}
    return item


def _unfit(items: Sequence[Any], error: Exception, name: str) -> DataError:
    first = items[0]
    keys = list(first) if isinstance(first, Mapping) else list(range(len(first)))
    for key in keys:
        values = [item[key] for item in items if not isinstance(item, Mapping) or key in item]
        shapes = list(dict.fromkeys(shape for it in values if (shape := _shape(it)) is not None))
        if len(shapes) > 1:
            pair = {0: "inputs", len(first) - 1: "targets"}
            which = repr(key) if isinstance(first, Mapping) else pair.get(key, f"input {key}")
            return DataError(
                f"{name} gives {which} of different shapes, {shapes[0]} and {shapes[1]} in one batch: crop or pad them "
                "to one shape in the dataset, or give pad=0 or a collate_fn that pads each batch."
            )
    remedy = "let each be a pair of tensors, arrays or numbers"
    return failed(f"{name}: a batch of its items", error, remedy)


def _shape(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, list):
        return (len(value),)
    return tuple(value.shape) if hasattr(value, "shape") else None


def failed(what: str, error: Exception, remedy: str) -> DataError:
    """The user's code raised `error`, whose traceback is a note: notes pass from one process to another."""
    failure = DataError(f"{what} failed with {in_words(error)}: {remedy}.")
    failure.add_note("".join(traceback.format_exception(error)))
    return failure
