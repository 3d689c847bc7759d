"""Drivers: threads that carry blocks of peers side by side from barrier to barrier.

Blocks have nothing to do with each other until they send. So each driver computes with one core what would else be cut
into small pieces for all cores, with a wait for the slowest at the end of every operation: microseconds as long as no
other program wants a core, and milliseconds as soon as one does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")
LEAST = 25  # peers in a driver's block: the interpreter's overhead is that of a block, whatever its size
_MOST = 4  # drivers: they share one interpreter


class Every(Protocol):
    """Calls a function with every item; the results in the order of the items."""

    def __call__(self, fn: Callable[[S], T], items: Iterable[S], /) -> Iterable[T]: ...


@dataclass(frozen=True)
class Drivers:
    """`count` threads."""

    count: int
    _pool: ThreadPoolExecutor

    def every(self, fn: Callable[[S], T], items: Iterable[S], /) -> Sequence[T]:
        """Call `fn` with every item, side by side; what one of them raises is raised once all have ended."""
        futures = [self._pool.submit(fn, item) for item in items]
        wait(futures)
        return [future.result() for future in futures]


@contextmanager
def drivers(peers: int) -> Iterator[Drivers | None]:
    """As many drivers as cores and `peers` allow, for as long as the context lasts; None where they are too few.

    The cores that torch uses in this thread are shared out among them; this thread keeps one driver's share.
    """
    cores = torch.get_num_threads()
    count = min(cores, peers // LEAST, _MOST)
    if count < 2:
        yield None
        return
    started = threading.Barrier(count)

    def start(_: int) -> None:
        _use(cores // count)
        started.wait()  # no thread may start twice, for another

    with ThreadPoolExecutor(count, thread_name_prefix="labkit-driver") as pool:
        list(pool.map(start, range(count)))
        _use(cores // count)
        others = threading.Thread(target=torch.set_num_threads, args=(cores,))  # those that are started later
        others.start()
        others.join()
        try:
            yield Drivers(count, pool)
        finally:
            _use(cores)


def _use(cores: int) -> None:
    """Let torch use so many cores in this thread; it also becomes what threads begin with that are started later."""
    torch.get_num_threads()  # a thread takes over the others' number when it first looks
    torch.set_num_threads(cores)
