"""Faults: what a dataset of somebody's own may do wrong as it gives examples, each in one sentence."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import default_collate

from labkit.errors import DataError

_SHOWN = 120  # characters of an exception's own words


class Fault(NamedTuple):
    """Why there is no batch: plain words, which pass from one process to another where exceptions may not."""

    sentence: str
    traced: str = ""

    def error(self) -> DataError:
        """The error to raise, with the traceback from the dataset's own code as a note."""
        error = DataError(self.sentence)
        if self.traced:
            error.add_note(self.traced)
        return error


def failed(what: str, error: Exception, remedy: str) -> Fault:
    """The user's code raised `error`."""
    return Fault(f"{what} failed with {words(error)}: {remedy}.", "".join(traceback.format_exception(error)))


def words(error: BaseException) -> str:
    """An exception in one line."""
    said = str(error).strip()
    first = said.splitlines()[0].rstrip(".:")[:_SHOWN] if said else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def collated(items: Sequence[Any], name: str) -> tuple[Tensor, Tensor] | Fault:
    """The items as one batch, inputs [B, …] and targets [B, …]."""
    odd = next((item for item in items if not (isinstance(item, tuple | list) and len(item) == 2)), None)
    if odd is not None:
        return Fault(
            f"{name} gives items of type {type(odd).__name__}: let each be a pair (input, target) of tensors, arrays "
            "or numbers."
        )
    try:
        x, y = default_collate(list(items))
    except Exception as error:  # noqa: BLE001  whatever the items do when they are put together
        for which, values in zip(("inputs", "targets"), zip(*items, strict=True), strict=True):
            shapes = list(dict.fromkeys(tuple(value.shape) for value in values if hasattr(value, "shape")))
            if len(shapes) > 1:
                return Fault(
                    f"{name} gives {which} of different shapes, {shapes[0]} and {shapes[1]} in one batch: crop or pad "
                    "them to one shape in the dataset."
                )
        return failed(f"{name}: a batch of its items", error, "let each be a pair of tensors, arrays or numbers")
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        kinds = " and ".join(type(value).__name__ for value in items[0])
        return Fault(f"{name} gives pairs of {kinds}: let each be a pair of tensors, arrays or numbers.")
    return x, y
