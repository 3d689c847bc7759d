"""Arrays: vectors of numbers as they travel between a client and the board, as .npy, of which nothing is unpickled."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from labkit.errors import ExchangeError

_HEAD = 10  # bytes of magic string, version and the length of the header in version 1.0
_LONGEST_HEADER = 512  # bytes: numpy writes 118


def packed(vector: NDArray[Any]) -> bytes:
    """A vector [P] as the bytes of a .npy file.

    >>> len(packed(np.zeros(10, dtype=np.float32)))
    168
    """
    file = io.BytesIO()
    npy.write_array(file, np.ascontiguousarray(vector), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def most_bytes(size: int, dtype: DTypeLike) -> int:
    """How long the file of a vector of `size` numbers may be."""
    return _HEAD + _LONGEST_HEADER + size * np.dtype(dtype).itemsize


def unpacked(body: bytes, size: int, dtype: DTypeLike) -> NDArray[Any]:
    """The vector [size] in the bytes of a .npy file: read as they stand, and nothing is allocated that they only name.

    Raises ExchangeError for another file, shape or type, for more or fewer bytes, and for numbers that are not finite.

    >>> unpacked(packed(np.ones(2, dtype=np.float32)), 2, np.float32)
    array([1., 1.], dtype=float32)
    """
    wanted = np.dtype(dtype)
    if not body.startswith(npy.MAGIC_PREFIX + b"\1\0"):
        raise ExchangeError("An update is one .npy file of version 1.0, and this is none: send np.save's bytes.")
    length = int.from_bytes(body[_HEAD - 2 : _HEAD], "little")
    if length > _LONGEST_HEADER:
        raise ExchangeError(f"The header of an update has at most {_LONGEST_HEADER} bytes, and not {length:,}.")
    try:
        file = io.BytesIO(body[npy.MAGIC_LEN : _HEAD + length])
        shape, _, found = npy.read_array_header_1_0(file)
    except Exception as error:  # numpy reads it as Python's literals, which fail in many ways
        raise ExchangeError("The header of this .npy file cannot be read: send np.save's bytes.") from error
    if found.hasobject:
        raise ExchangeError("This .npy file holds pickled objects, which nobody here unpacks: send numbers.")
    if shape != (size,) or found != wanted:
        raise ExchangeError(
            f"An update has the shape ({size},) and the type {wanted}, and this one {shape} and {found}: send the "
            "parameters of the model that the class trains, in their order."
        )
    numbers = body[_HEAD + length :]
    if len(numbers) != size * wanted.itemsize:
        raise ExchangeError(f"{size} numbers take {size * wanted.itemsize:,} bytes, and {len(numbers):,} came.")
    vector: NDArray[Any] = np.frombuffer(numbers, wanted).copy()
    if wanted.kind == "f" and not np.isfinite(vector).all():
        raise ExchangeError("An update with NaN or infinite numbers is no update: lower the learning rate.")
    return vector
