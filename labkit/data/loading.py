"""Loading: the batches of a torch dataset in their order, by this process or ahead of it by torch's DataLoader."""

from __future__ import annotations

import copy
import multiprocessing
import multiprocessing.connection
import os
import random
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from labkit.data.batches import Batches, Indices
from labkit.errors import DataError
from labkit.text import in_words

Batch = tuple[Tensor, Tensor]
_DIED = "DataLoader worker"  # how torch begins when one of its processes has died


class _Open(threading.local):
    """The loaders that this thread has opened and not closed."""

    def __init__(self) -> None:
        self.loaders: list[Iterator[Batch]] = []


_open = _Open()


@contextmanager
def loaders_closed() -> Iterator[None]:
    """End the processes of all loaders that are opened inside, however it is left; also a decorator."""
    before, _open.loaders = _open.loaders, []
    try:
        yield
    finally:
        for loader in _open.loaders:
            loader.close()  # type: ignore[attr-defined]  # a generator
        _open.loaders = before


def in_process(requests: Iterator[Batch | Fault]) -> Iterator[Batch]:
    """The batches, loaded when they are wanted."""
    for batch in requests:
        if isinstance(batch, Fault):
            raise batch.error()
        yield batch


def ahead(source: Any, indices: Batches, workers: int, name: str) -> Iterator[Batch]:
    """The batches of `indices`, loaded ahead by `workers` processes, in the same order and with the same content.

    `source` is a torch dataset of whole batches. `indices` counts the batches as they are delivered.

    Raises DataError for what the dataset does wrong, for a process that died, and where there can be none.
    """
    generator = _delivered(source, indices, workers, name)
    _open.loaders.append(generator)
    return generator


def numbered(indices: Batches) -> Iterator[tuple[int, Indices]]:
    """Each batch with its number."""
    for at in indices:
        yield indices.dealt - 1, at


def _delivered(source: Any, indices: Batches, workers: int, name: str) -> Iterator[Batch]:
    if multiprocessing.current_process().daemon:
        raise DataError(
            f"{name} wants {workers} processes to load its batches, but daemonic processes are not allowed to have "
            "children, and this worker is one: set distributed.worker.daemon: False in Dask's configuration before the "
            "workers start, or give workers=0."
        )
    streams = isinstance(source, IterableDataset)
    loader = DataLoader(
        _Sent(source) if not streams else _SentStream(source),
        batch_size=None,  # the source gives whole batches
        sampler=None if streams else numbered(copy.copy(indices)),
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=_begin,
        multiprocessing_context=_context(),
        generator=torch.Generator().manual_seed(indices.key[0]),  # else it would draw from the run's own
    )
    processes: Any = iter(loader)
    try:
        while (batch := _next(processes, name)) is not None:
            next(indices)
            yield batch
    finally:
        processes._shutdown_workers()  # a traceback may keep the iterator, and with it the processes, alive


def _next(processes: Any, name: str) -> Batch | None:
    try:
        batch: Batch | Fault = next(processes)
    except StopIteration:
        return None
    except RuntimeError as error:
        if _DIED not in str(error):
            raise
        raise DataError(
            f"A process that loaded batches of {name} died ({str(error).splitlines()[0].rstrip('.')}), as it does when "
            "memory runs out or somebody kills it: train again, with fewer workers=… if memory is short."
        ) from error.with_traceback(None)
    if isinstance(batch, Fault):
        raise batch.error()
    return batch


def _context() -> str:
    """How processes are started: not by a fork of this one.

    A fork would hold the sockets on which the death of this process is noticed, and it cannot follow CUDA. A fork
    server is quick; in the kernel it belongs to the cluster, and elsewhere it starts with what a loader needs.
    """
    if sys.platform != "linux" or multiprocessing.parent_process() is None:
        return "spawn"
    multiprocessing.set_forkserver_preload(["torch.utils.data", __name__])
    return "forkserver"


def _begin(_: int) -> None:
    """Let this process end with the one it loads for: torch looks for its parent, which a fork server outlives."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _same(batch: Any) -> Any:
    return batch


class _Sent(torch.utils.data.Dataset[Any]):
    """A source on its way to a process: a class of the notebook's travels by value there."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getitem__(self, request: Any) -> Any:
        return self._source[request]

    def __reduce__(self) -> Any:
        return _unpacked, (type(self), cloudpickle.dumps(self._source))


class _SentStream(IterableDataset[Any]):
    def __init__(self, source: Any) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        return iter(self._source)

    def __reduce__(self) -> Any:
        return _unpacked, (type(self), cloudpickle.dumps(self._source))


def _unpacked(kind: Any, packed: bytes) -> Any:
    return kind(cloudpickle.loads(packed))


# -- Faults: what a dataset of somebody's own may do wrong as it gives examples, each in one sentence.


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
    return Fault(f"{what} failed with {in_words(error)}: {remedy}.", "".join(traceback.format_exception(error)))


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


# -- Randomness: what a dataset draws at random as it loads examples follows from a key, wherever that happens.


class Randomness:
    """A context in which Python's, numpy's and torch's random numbers follow from `key`, and go on from exit to entry.

    Outside they are as they would have been (but for the second of two that `numpy.random.randn` draws at once).
    So a random crop is the same in every engine, in the process that trains or loads ahead, and after a checkpoint.

    >>> import random
    >>> with Randomness(3, 1):
    ...     first = random.random()
    >>> with Randomness(3, 1):
    ...     first == random.random()
    True
    """

    def __init__(self, *key: int) -> None:
        self._numpys = np.random.MT19937()  # swapped in and out, as copying its state takes longer than a batch may
        self.anew(*key)

    def anew(self, *key: int) -> Randomness:
        """The same from its beginning, with another key."""
        self._key = key
        self._inside: tuple[Any, torch.Tensor] | None = None
        return self

    def __enter__(self) -> Randomness:
        self._outside = random.getstate(), torch.get_rng_state()
        self._others = get_bit_generator()
        set_bit_generator(self._numpys)
        if self._inside is None:
            python, numpys, torchs = np.random.SeedSequence(self._key).generate_state(3)
            random.seed(int(python))
            np.random.seed(int(numpys))
            torch.default_generator.manual_seed(int(torchs))
        else:
            _restore(*self._inside)
        return self

    def __exit__(self, *_: object) -> None:
        self._inside = random.getstate(), torch.get_rng_state()
        set_bit_generator(self._others)
        _restore(*self._outside)


def _restore(python: Any, torchs: torch.Tensor) -> None:
    random.setstate(python)
    torch.set_rng_state(torchs)
