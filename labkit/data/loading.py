"""Loading: the batches of a torch dataset in their order, by this process or ahead of it by torch's DataLoader."""

from __future__ import annotations

import atexit
import copy
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import cloudpickle
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from labkit.data.batches import Batches
from labkit.data.collation import Batch
from labkit.errors import DataError

_DIED = "DataLoader worker"  # how torch begins when one of its processes has died
_opened: ContextVar[ExitStack | None] = ContextVar("opened", default=None)  # loaders to close, newest first


class Reader(IterableDataset[Any]):
    """The batches of a torch dataset that `indices` deals; of W DataLoader processes each gives every W-th.

    `source` is labkit's dataset of them. What is random in a batch follows from the keys of `indices` alone. In
    another process a DataError is given, not raised: torch would wrap it into words of its own.
    """

    def __init__(self, source: Any, indices: Batches) -> None:
        self.source, self.indices = source, indices

    @abstractmethod
    def requests(self) -> Iterator[Callable[[], Batch]]:
        """For each batch that is dealt what makes it: called only in the process whose turn it is."""

    def __iter__(self) -> Iterator[Batch | DataError]:
        info = get_worker_info()
        every, mine = (1, 0) if info is None else (info.num_workers, info.id)
        try:
            for number, make in enumerate(self.requests()):
                if number % every == mine:
                    yield make()
        except DataError as error:
            if info is None:
                raise
            yield error

    def __reduce__(self) -> Any:  # a class of the notebook's travels by value to a process
        return _unpacked, (type(self), cloudpickle.dumps((self.source, self.indices)))


def _unpacked(kind: type[Reader], packed: bytes) -> Reader:
    return kind(*cloudpickle.loads(packed))


def prefetched(reader: type[Reader], source: Any, indices: Batches) -> Iterator[Batch]:
    """The batches that a reader gives, loaded ahead by the source's `workers`; `indices` counts those delivered.

    Raises DataError for what the dataset does wrong, for a process that died, and where there can be none.
    """
    loader = _delivered(reader(source, copy.copy(indices)), indices)
    if (stack := _opened.get()) is not None:
        stack.callback(loader.close)
    return loader


@contextmanager
def loaders_closed() -> Iterator[None]:
    """End the processes of all loaders that are opened inside, however it is left; also a decorator."""
    with ExitStack() as stack:
        before = _opened.set(stack)
        try:
            yield
        finally:
            _opened.reset(before)


def _delivered(reader: Reader, indices: Batches) -> Generator[Batch]:
    name, workers = reader.source.name, reader.source.workers
    if multiprocessing.current_process().daemon:
        raise DataError(
            f"{name} wants {workers} processes to load its batches, but daemonic processes are not allowed to have "
            "children, and this worker is one: set distributed.worker.daemon: False in Dask's configuration before the "
            "workers start, or give workers=0."
        )
    processes: Any = iter(
        DataLoader(
            reader,
            batch_size=None,  # the reader gives whole batches
            num_workers=workers,
            collate_fn=_same,
            worker_init_fn=_begin,
            multiprocessing_context=_context(),
            generator=torch.Generator().manual_seed(indices.key[0]),  # else it would draw from the run's own
        )
    )
    try:
        while (batch := _next(processes, name)) is not None:
            next(indices)
            yield batch
    finally:
        processes._shutdown_workers()  # a traceback may keep the iterator, and with it the processes, alive


def _next(processes: Any, name: str) -> Batch | None:
    try:
        batch: Batch | DataError = next(processes)
    except StopIteration:
        return None
    except RuntimeError as error:
        if _DIED not in str(error):
            raise
        raise DataError(
            f"A process that loaded batches of {name} died ({str(error).splitlines()[0].rstrip('.')}), as it does when "
            "memory runs out or somebody kills it: train again, with fewer workers=… if memory is short."
        ) from error.with_traceback(None)
    if isinstance(batch, DataError):
        raise batch
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
    """Let this process end with the one it loads for: torch looks for its parent, which a fork server outlives.

    It ends at once, as a forked one does: where Python first takes itself down, its end falls into the thread that is
    still handing over a batch, in the midst of torch's C++, and aborts the process.
    """
    atexit.register(os._exit, 0)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _same(batch: Any) -> Any:
    return batch
