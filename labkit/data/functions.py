"""Functions and files: data that are loaded where they are wanted, so that only a name travels to the workers."""

from __future__ import annotations

import copyreg
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import cloudpickle
import numpy as np
import torch

from labkit.data.conversion import classes_of, inputs, numbered, targets
from labkit.data.dataset import Dataset
from labkit.data.tensors import Tensors, from_tensors
from labkit.errors import DataError, LabkitError
from labkit.text import a, in_words

_KEPT = 2  # datasets that a process keeps, the ones used last
_PARTS = {"x", "y", "test_x", "test_y"}


def _named(module: Any) -> tuple[Any, ...]:
    return import_module, (module.__name__,)


for _module in (torch.classes, torch.ops):  # which cloudpickle finds where a function reads `.classes` of a dataset
    copyreg.pickle(type(_module), _named)


def from_function(load: Callable[..., Dataset], *args: Any) -> Dataset:
    """The dataset that load(*args) makes, called once in each process that uses it; only the call travels there.

    A process keeps the two datasets it used last, so that the next run finds them there.

    Raises DataError where the function fails or makes something else; what fails on a worker is told by the run.

    >>> import labkit as lk
    >>> lk.data.from_function(lk.data.load, "iris")
    Dataset iris: 120 training and 30 test examples of shape (4,), 3 classes
    """
    return _called(cloudpickle.dumps((load, args)))


@lru_cache(maxsize=_KEPT)
def _called(packed: bytes) -> Dataset:
    load, args = cloudpickle.loads(packed)
    name = getattr(load, "__name__", type(load).__name__)
    try:
        made = load(*args)
    except LabkitError:
        raise
    except Exception as error:
        raise DataError(
            f"{name} could not load data on {socket.gethostname()} ({in_words(error)}): correct it, or put what it "
            "reads where every worker finds it."
        ) from error
    if not isinstance(made, Dataset):
        raise DataError(
            f"{name} made {a(type(made).__name__)}: let it return a dataset, as lk.data.from_tensors(x, y) and "
            "lk.data.from_torch(train, test) do."
        )
    return cast(Dataset, replace(cast(Any, made), source=partial(_called, packed)))


def from_file(path: str | Path) -> Dataset:
    """A dataset in a file that every worker can read, loaded there once: .npz of numpy, or .pt of torch.save.

    It holds arrays or tensors by the names x and y, and test_x and test_y unless a share is to be held back, which are
    read as by `from_tensors`. Neither kind runs code as it is read. After the file has changed it is loaded anew.

    Raises DataError for a file that cannot be read, or holds something else.
    """
    at = Path(path).expanduser().absolute()
    if at.suffix not in (".npz", ".pt", ".pth"):
        raise DataError(f"{at.name} is neither a .npz nor a .pt file: save one by numpy.savez or torch.save.")
    try:
        found = at.stat()
    except OSError as error:
        raise _unreadable(at, error) from error
    return from_function(_read, str(at), (found.st_mtime_ns, found.st_size))


def _read(path: str, version: tuple[int, int]) -> Tensors:
    at = Path(path)
    try:
        if at.suffix == ".npz":
            with np.load(at, allow_pickle=False) as file:
                found: Any = {name: file[name] for name in file.files}
        else:
            found = torch.load(at, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, numpy and zip each have their own for a damaged file
        raise _unreadable(at, error) from error
    if (
        not isinstance(found, dict)
        or not {"x", "y"} <= set(found) <= _PARTS
        or ("test_x" in found) != ("test_y" in found)
    ):
        holds = ", ".join(map(str, found)) if isinstance(found, dict) else a(type(found).__name__)
        raise DataError(f"{at} holds {holds}: save x and y, and test_x and test_y if they are apart.")
    if "test_x" not in found:
        return from_tensors(found["x"], found["y"], name=at.stem)
    (y, test_y), names = numbered(targets(found["y"]), targets(found["test_y"], "test_y"))
    x, test_x, classes = inputs(found["x"]), inputs(found["test_x"], "test_x"), max(classes_of(y), classes_of(test_y))
    return Tensors(at.stem, x, y, test_x, test_y, classes, names=names)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read on {socket.gethostname()} ({in_words(error)}): put the file there, or at a path "
        "that all workers share."
    )
