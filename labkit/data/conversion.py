"""Conversion: what users hold, such as tables, arrays and names, becomes tensors, or is refused with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from labkit.errors import DataError
from labkit.text import a, in_words, short

T = TypeVar("T")
_TOKENS = (torch.int64, torch.int32)
_UNSIGNED = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64, np.dtype(np.uint64): np.int64}


def inputs(x: Any, name: str = "x") -> Tensor:
    """Inputs as a tensor: token numbers stay integers, all else becomes float32.

    Raises DataError for what holds no numbers, or NaN or infinite numbers.
    """
    given = _numbers(x, name)
    if not isinstance(given, Tensor):
        raise DataError(f"{name} holds words such as {short(given[0])}: encode them as numbers first.")
    return _finite(given.to(torch.int64 if given.dtype in _TOKENS else torch.float32), name)


def targets(y: Any, name: str = "y") -> Tensor | Sequence[str]:
    """Targets as a tensor of their own shape, integers and truth values as int64 and real numbers as float32; or names.

    Raises DataError for what holds neither, or NaN or infinite numbers.
    """
    given = _numbers(y, name)
    if not isinstance(given, Tensor):
        return given
    return _finite(given.to(torch.float32 if given.is_floating_point() else torch.int64), name)


def numbered(*each: Tensor | Sequence[str]) -> tuple[list[Tensor], tuple[str, ...]]:
    """Names as class numbers in the names' own order, the same for all parts of a dataset; and the names.

    >>> numbered(["dog", "cat"], ["cat"])
    ([tensor([1, 0]), tensor([0])], ('cat', 'dog'))
    """
    if all(isinstance(it, Tensor) for it in each):
        return [it for it in each if isinstance(it, Tensor)], ()
    if any(isinstance(it, Tensor) for it in each):
        raise DataError("y holds names and test_y numbers, or the other way round: give both alike.")
    names = sorted({name for part in each for name in part})
    place = {name: k for k, name in enumerate(names)}
    return [torch.tensor([place[name] for name in part]) for part in each], tuple(names)


def class_numbers(y: Tensor, classes: int) -> Tensor:
    """Targets that are to be class numbers as int64, also where they were given as real numbers; else DataError."""
    if not torch.equal(y, y.round()) or (y.numel() and not 0 <= int(y.min()) <= int(y.max()) < classes):
        raise DataError(
            f"y is not made of class numbers from 0 to {classes - 1}: number the classes so, or leave "
            f"classes={classes} away for real-valued targets."
        )
    return y.to(torch.int64)


def classes_of(y: Tensor) -> int:
    """How many classes these targets tell of: none where they are real numbers."""
    return 0 if y.is_floating_point() or not y.numel() else int(y.max()) + 1


def _finite(values: Tensor, name: str) -> Tensor:
    if values.is_floating_point() and bool((odd := ~values.isfinite()).any()):
        first = int(odd.flatten(1).any(1).nonzero()[0]) if values.dim() > 1 else int(odd.nonzero()[0])
        if bool(values[first].isnan().any()):
            raise DataError(f"{name} holds NaN, first in row {first}: fill in what is missing, or leave such rows out.")
        raise DataError(
            f"{name} holds numbers that are infinite as float32, first in row {first}: scale them down, or leave such "
            "rows out."
        )
    return values


def _numbers(given: Any, name: str) -> Tensor | Sequence[str]:
    """A tensor of numbers with a row for each example, or the names that a list or a column of a table holds."""
    _require_rows(given, name)
    found: Tensor | Sequence[str] = given if isinstance(given, Tensor) else _converted(given, name)
    if isinstance(found, Tensor):
        if found.is_quantized or found.is_nested:
            what, remedy = ("quantized", "dequantize()") if found.is_quantized else ("nested", "to_padded_tensor(0)")
            raise DataError(f"{name} is a {what} tensor: give {name}.{remedy}.")
        if found.is_complex() or found.layout is not torch.strided:
            raise DataError(f"{name} holds {'complex numbers' if found.is_complex() else 'a sparse tensor'}: give real "
                            "numbers in a dense tensor.")  # fmt: skip
        if not found.dim():
            raise DataError(f"{name} is one number: give a row for each example.")
    return found.detach() if isinstance(found, Tensor) else found


def _require_rows(given: Any, name: str) -> None:
    if callable(getattr(given, "toarray", None)) and hasattr(given, "nnz"):  # of scipy
        raise DataError(f"{name} is a sparse matrix: give {name}.toarray(), or the numbers that matter as columns.")
    if given is None:
        raise DataError(f"{name} is None: give inputs and targets, as many of one as of the other.")
    if isinstance(given, np.ma.MaskedArray) and bool(np.ma.getmaskarray(given).any()):
        raise DataError(
            f"{name} is an array with masked values: fill them, as {name}.filled(0) does, or leave them out."
        )
    if isinstance(given, Iterator):
        raise DataError(f"{name} is {a(type(given).__name__)}, which can be gone through only once: give list({name}).")
    if isinstance(given, str | bytes | dict | set) or not (hasattr(given, "__len__") or hasattr(given, "__array__")):
        raise DataError(
            f"{name} is {a(type(given).__name__)}: give a tensor, an array, a DataFrame or a list with a row for each "
            "example."
        )


def _converted(given: Any, name: str) -> Tensor | Sequence[str]:
    if callable(to_numpy := getattr(given, "to_numpy", None)):  # tables of pandas, polars and others
        given = to_numpy()
    if not isinstance(given, np.ndarray):
        given = list(given) if not hasattr(given, "__array__") else np.asarray(given)
    if isinstance(given, list):
        if given and all(isinstance(row, Tensor) for row in given):
            return _put_together(lambda: torch.stack(given), given, name)
        given = _put_together(lambda: np.array(given), given, name)
    if given.dtype == object:
        return _mixed(given, name)
    if given.dtype.kind in "US":
        return _names(given, name)
    if given.dtype.kind not in "biufc":
        raise DataError(f"{name} is made of {given.dtype}: turn it into numbers first.")
    plain = given.astype(_UNSIGNED.get(given.dtype, given.dtype.newbyteorder("=")))  # a copy: in order and writeable
    return torch.from_numpy(plain)


def _put_together(make: Callable[[], T], rows: Sequence[Any], name: str) -> T:
    try:
        return make()
    except (ValueError, RuntimeError, TypeError) as error:
        sizes = list(dict.fromkeys(len(row) for row in rows if hasattr(row, "__len__")))
        if len(sizes) > 1:
            raise _ragged(name, sizes[0], sizes[1]) from None
        raise DataError(
            f"{name} cannot be read as one array ({in_words(error)}): give rows of numbers of one shape."
        ) from error


def _mixed(given: Any, name: str) -> Tensor | Sequence[str]:
    """An array of Python objects: numbers, rows of numbers, or names."""
    flat = given.reshape(-1).tolist()
    if flat and all(isinstance(it, str) for it in flat):
        return _names(given, name)
    if heap := next((it for it in flat if isinstance(it, dict | set | frozenset)), None):
        raise DataError(f"{name} holds {a(type(heap).__name__)}: turn each into a row of numbers first.")
    if any(hasattr(it, "__len__") and not isinstance(it, str) for it in flat):  # rows that numpy took for objects
        return _converted(list(given), name) if given.ndim > 1 else _rows(flat, name)
    odd = next((it for it in flat if isinstance(it, str)), None)
    missing = next((k for k, it in enumerate(flat) if _is_missing(it)), None)
    if missing is not None:
        row = missing // max(1, len(flat) // len(given))
        raise DataError(f"{name} holds {flat[missing]!r}, first in row {row}: fill in what is missing, or leave such "
                        "rows out.")  # fmt: skip
    if odd is not None:
        raise DataError(f"{name} holds {odd!r} among numbers: encode that column as numbers, or leave it away.")
    whole = all(isinstance(it, int | np.integer) for it in flat)
    try:
        return torch.from_numpy(given.astype(np.int64 if whole else np.float64))
    except OverflowError:
        raise DataError(f"{name} holds whole numbers beyond 64 bits: scale them down, or give real numbers.") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} holds what is no number ({in_words(error)}): turn it into numbers first.") from None


def _is_missing(value: Any) -> bool:
    """Whether this stands for no value: None, NaN, and what tables have in their places."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA is neither the same as itself nor another
        return True


def _rows(rows: list[Any], name: str) -> Tensor | Sequence[str]:
    sizes = list(dict.fromkeys(len(row) if hasattr(row, "__len__") else 1 for row in rows))
    if len(sizes) > 1:
        raise _ragged(name, sizes[0], sizes[1])
    return _converted([np.asarray(row) for row in rows], name)


def _names(given: Any, name: str) -> Sequence[str]:
    words = given.reshape(len(given), -1)
    if words.shape[1] != 1:
        raise DataError(f"{name} holds words such as {str(words[0, 0])!r}: encode them as numbers first.")
    return [it.decode() if isinstance(it, bytes) else str(it) for it in words[:, 0].tolist()]


def _ragged(name: str, one: int, other: int) -> DataError:
    return DataError(
        f"{name} has rows of different lengths, {one} and {other}: pad them to one length, or give a torch dataset "
        "with lk.data.from_torch(train, pad=0), which pads each batch."
    )
