"""Loading: the batches of a torch dataset in their order, by this process or ahead of it by torch's DataLoader."""

from __future__ import annotations

import copy
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from labkit.data.batches import Batches, Indices
from labkit.data.faults import Fault
from labkit.errors import DataError

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
