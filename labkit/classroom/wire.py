"""Wire: what may pass between an answer and its checker: numbers, text, lists, dicts, arrays, tensors, settings.

Nothing is unpickled, so an answer can send data and no code.
"""

from __future__ import annotations

import dataclasses
import io
import json
from base64 import b64decode, b64encode
from collections.abc import Iterable
from importlib import import_module
from itertools import islice
from numbers import Number
from typing import Any, BinaryIO

import numpy as np

MOST = 64 << 20
"""Bytes that one message may have."""
_LONGEST = 1_000_000  # items of what comes one by one, and may come for ever
_SETTINGS = ("labkit.algorithms.", "labkit.costs.", "labkit.data.", "labkit.exchange.")
"""Where the frozen dataclasses and named tuples are that answers may have: algorithms, plans, shards, tables.
None runs anything when made."""


class Ended(Exception):
    """Nobody is there any more at the other end."""


class CannotPass(TypeError):
    """This may not pass."""


def send(pipe: BinaryIO, message: dict[str, Any]) -> None:
    """Write one message; raises CannotPass for what may not."""
    try:
        pipe.write(packed(message))
        pipe.flush()
    except OSError:
        raise Ended from None


def receive(pipe: BinaryIO) -> dict[str, Any]:
    """Read one message; raises Ended at the pipe's end, and ValueError for what is none."""
    line = pipe.readline(MOST)
    if not line:
        raise Ended
    return unpacked(line)


def packed(message: dict[str, Any]) -> bytes:
    """A message as a line; raises CannotPass for what may not pass."""
    return json.dumps({key: _packed(value) for key, value in message.items()}).encode() + b"\n"


def unpacked(line: bytes | bytearray) -> dict[str, Any]:
    """A line as the message that it is; raises ValueError and its like for what is none."""
    return {key: _unpacked(value) for key, value in json.loads(line).items()}


def _packed(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if _settings(type(value)):
        named = isinstance(value, tuple)
        names = value._fields if named else [it.name for it in dataclasses.fields(value) if it.init]
        fields = {name: _packed(getattr(value, name)) for name in names}
        return {"settings": [type(value).__module__, type(value).__name__], "fields": fields}
    if isinstance(value, list):
        return {"list": [_packed(it) for it in value]}
    if isinstance(value, tuple | set | frozenset):
        return {"tuple": [_packed(it) for it in value]}
    if isinstance(value, dict):
        return {"dict": [[_packed(key), _packed(it)] for key, it in value.items()]}
    if isinstance(value, np.ndarray | np.generic):
        return {"array": _npy(np.asarray(value)), "scalar": isinstance(value, np.generic)}
    if type(value).__module__ == "torch" and hasattr(value, "detach"):
        return {"tensor": _npy(value.detach().cpu().numpy())}
    if isinstance(value, Number):  # a fraction, a decimal
        return float(value)  # type: ignore[arg-type]
    if isinstance(value, Iterable):  # a range, a generator, a deque
        each = [_packed(it) for it in islice(value, _LONGEST + 1)]
        if len(each) <= _LONGEST:
            return {"tuple": each}
    raise CannotPass(f"a {type(value).__name__} cannot be handed to the checker")


def _settings(kind: Any) -> bool:
    """Whether it is a frozen dataclass or a named tuple of one of those modules."""
    if not isinstance(kind, type) or not kind.__module__.startswith(_SETTINGS):
        return False
    named = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return named or bool(getattr(getattr(kind, "__dataclass_params__", None), "frozen", False))


def _npy(array: np.ndarray[Any, Any]) -> str:
    kept = io.BytesIO()
    np.save(kept, array, allow_pickle=False)
    return b64encode(kept.getvalue()).decode()


def _unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "complex" in value:
        return complex(*value["complex"])
    if "list" in value:
        return [_unpacked(it) for it in value["list"]]
    if "tuple" in value:
        return tuple(_unpacked(it) for it in value["tuple"])
    if "dict" in value:
        return {_unpacked(key): _unpacked(it) for key, it in value["dict"]}
    if "array" in value or "tensor" in value:
        array = np.load(io.BytesIO(b64decode(value.get("array") or value["tensor"])), allow_pickle=False)
        if "tensor" in value:
            import torch

            return torch.from_numpy(array)
        return array[()] if value["scalar"] else array
    module, name = value["settings"]
    if not module.startswith(_SETTINGS):
        raise ValueError(f"{module} has no settings")
    kind = getattr(import_module(module), name)
    if not _settings(kind):
        raise ValueError(f"{name} is no settings")
    return kind(**{key: _unpacked(it) for key, it in value["fields"].items()})
