"""A lab on workers as Dask starts them by default, which are daemonic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import distributed

import labkit as lk
from labkit.cluster.lab import Lab


@contextmanager
def stock_lab(workers: int) -> Iterator[Lab]:
    """A lab on so many workers of one thread; tests may kill them."""
    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        lk.connect(cluster) as lab,
    ):
        yield lab
